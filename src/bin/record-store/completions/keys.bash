
# Completes what only the program knows: keys, and where the command after -- begins. _record_store completes the rest.
__record_store_complete() {
    local IFS=$' \t\n' word quote i
    local -a words=() answer=()
    if __record_store_split "${COMP_LINE:0:COMP_POINT}" && [[ ${#words[@]} -gt 1 ]]; then
        mapfile -t answer < <(command record-store complete-keys -- "${words[@]:1}" "$word" 2>/dev/null)
    fi
    case "${answer[0]-}" in
        keys)
            __record_store_offer "$2" "$word" "${answer[@]:1}"
            ;;
        value)
            __record_store_offer "$2" "${word#*=}" "${answer[@]:1}"
            ;;
        dirs)
            # Not compgen, which would take quotes in the word for quoting.
            mapfile -t -O "${#answer[@]}" answer < <(
                shopt -s nullglob; shopt -u failglob; printf '%s\n' "$word"*/
            )
            for i in "${!answer[@]}"; do
                [[ -n ${answer[i]} ]] || unset "answer[i]"
            done
            __record_store_offer "$2" "$word" "${answer[@]:1}"
            ;;
        files)
            COMPREPLY=()
            ;;
        command*)
            # Bash splits words at more characters, so it numbers them differently.
            for ((i = 1; i < COMP_CWORD; i++)); do
                [[ ${COMP_WORDS[i]} != -- ]] || break
            done
            __record_store_command "$2" $((i + 1))
            ;;
        *)
            _record_store "$@"
            ;;
    esac
}

# Completes a command, which begins with the word of this number.
__record_store_command() {
    COMPREPLY=()
    if declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$2"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$2"
    elif [[ $COMP_CWORD -eq $2 && $1 != */* ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$1")
    fi
}

# Splits the text into $words and the unfinished $word, without their quotes, as the shell will. $quote is the quote that
# is open at the end. Expands ~ and variables. Fails where the shell would execute something to know a word, and
# behind a redirection. COMP_WORDS has the quotes, and is split at colons.
__record_store_split() {
    local line=$1 part begun=
    local name='^\$([A-Za-z_][A-Za-z0-9_]*)' braced='^\$\{([A-Za-z_][A-Za-z0-9_]*)\}'
    local home='^~([A-Za-z0-9_.-]*)(/|[[:space:]]|$)' plain='^[^][:space:][\"'\''$`;|&<>()~]+'
    words=() word='' quote=''
    while [[ -n $line ]]; do
        if [[ $quote == \' ]]; then
            part=${line%%\'*}
            word+=$part line=${line:${#part}}
            [[ -z $line ]] || quote='' line=${line:1}
            continue
        fi
        case $line in
            \$*)
                [[ $line =~ $name || $line =~ $braced ]] || return 1
                part=${BASH_REMATCH[1]} line=${line:${#BASH_REMATCH[0]}}
                word+=${!part-} begun=1
                ;;
            \`*)
                return 1
                ;;
            \\)
                return 1
                ;;
            \\*)
                [[ -z $quote || ${line:1:1} == [\\\"\$\`] ]] || word+=\\
                word+=${line:1:1} line=${line:2} begun=1
                ;;
            \"*)
                if [[ -n $quote ]]; then quote=''; else quote=\"; fi
                line=${line:1} begun=1
                ;;
            *)
                if [[ -n $quote ]]; then
                    part=${line%%[\\\"\$\`]*}
                    word+=$part line=${line:${#part}}
                    continue
                fi
                case $line in
                    \'*)
                        quote=\' line=${line:1} begun=1
                        ;;
                    [[:space:]]*)
                        [[ -z $begun ]] || words+=("$word")
                        word='' begun='' line=${line:1}
                        ;;
                    [\;\|\&\<\>\(\)]*)
                        return 1
                        ;;
                    *)
                        if [[ -z $begun && $line =~ $home ]]; then
                            part=${BASH_REMATCH[1]} line=${line:${#BASH_REMATCH[1]} + 1}
                            # The name has no character that the shell would expand.
                            eval "word=~$part"
                        elif [[ $line =~ $plain ]]; then
                            word+=${BASH_REMATCH[0]} line=${line:${#BASH_REMATCH[0]}}
                        else
                            word+=${line:0:1} line=${line:1}
                        fi
                        begun=1
                        ;;
                esac
                ;;
        esac
    done
}

# Offers texts that begin with the word. $1 is what the shell will replace: the end of the word as it was typed.
__record_store_offer() {
    local typed=$1 word=$2 common text quoted
    shift 2
    # There are no files with the names of keys.
    compopt +o bashdefault +o default 2>/dev/null
    COMPREPLY=()
    [[ $# -gt 0 ]] || return 0
    common=$1
    for text; do
        while [[ $text != "$common"* ]]; do
            common=${common%?}
        done
    done
    case "$COMP_TYPE" in
        37 | 42)
            # Each of them is inserted.
            for text; do
                __record_store_quote "${text:${#word}}"
                COMPREPLY+=("$typed$quoted")
            done
            ;;
        *)
            if [[ $# -eq 1 || ( ${#common} -gt ${#word} && $COMP_TYPE != 63 ) ]]; then
                __record_store_quote "${common:${#word}}"
                [[ $# -eq 1 && $common != */ ]] || compopt -o nospace 2>/dev/null
                COMPREPLY=("$typed$quoted")
            else
                # They are only shown, so they are not quoted. The shell inserts what all have in common: $typed.
                for text; do
                    COMPREPLY+=("$typed${text:${#word}}")
                done
            fi
            ;;
    esac
}

# Quotes the rest of a word as $quoted, and closes the open quote.
__record_store_quote() {
    local rest=$1 char
    quoted=''
    if [[ -z $quote ]]; then
        [[ -z $rest ]] || printf -v quoted %q "$rest"
        return
    fi
    while [[ -n $rest ]]; do
        char=${rest:0:1} rest=${rest:1}
        case $quote$char in
            \'\')
                quoted+="'\\''"
                ;;
            \"[\\\"\$\`])
                quoted+=\\$char
                ;;
            \"!)
                # A backslash before it would stay.
                quoted+="\"'!'\""
                ;;
            *)
                quoted+=$char
                ;;
        esac
    done
    quoted+=$quote
    # The shell takes a quote here for the one that is open, and leaves that out.
    [[ -n $typed || $quoted != "$quote"* ]] || quoted=$quote$quoted
}
