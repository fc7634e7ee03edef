# Completes what only the program knows: keys, and where the command after -- begins. Returns 2 if the program knows no
# more than the rest of this script.
_record-store_ask() {
    local word name ret=1
    local -a record_store_words record_store_keys
    (( CURRENT > 2 )) || return 2
    for word in "${(@)words[2,CURRENT-1]}"; do
        # Variables and ~, but nothing that would execute a command.
        if [[ $word != *[\`\'\\]* && ${word//\$([[:alpha:]_][[:alnum:]_]#|\{[[:alpha:]_][[:alnum:]_]#\})/} != *\$* ]]; then
            word="${(e)${(Q)word}}"
        else
            word="${(Q)word}"
        fi
        if [[ $word == \~* ]]; then
            name=${${word#\~}%%/*}
            name=${${name:+${nameddirs[$name]:-${userdirs[$name]:-\~$name}}}:-$HOME}
            word=$name${word#"${word%%/*}"}
        fi
        record_store_words+=("$word")
    done
    word=$PREFIX
    [[ $compstate[quote] == \' ]] || word="${(Q)PREFIX}"
    record_store_keys=("${(@f)$(command record-store complete-keys -- "${(@)record_store_words}" "$word" 2>/dev/null)}")
    name=$record_store_keys[1]
    shift record_store_keys
    case $name in
        (value)
            compset -P '--prefix='
            ;&
        (keys)
            _wanted keys expl key compadd -a record_store_keys && ret=0
            ;;
        (dirs)
            _alternative 'keys:key:compadd -a record_store_keys' 'directories:directory:_files -/' && ret=0
            ;;
        (files)
            _files && ret=0
            ;;
        (command*)
            shift ${name#command } words
            (( CURRENT -= ${name#command } ))
            shift words
            (( CURRENT -= 1 ))
            _normal && ret=0
            ;;
        (*)
            ret=2
            ;;
    esac
    return ret
}

