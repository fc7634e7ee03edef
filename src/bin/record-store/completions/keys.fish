
# Asks the program for what only it knows: keys, and where the command after -- begins.
function __fish_record_store_ask
    set -l before (commandline -opc)
    set -e before[1]
    set -l given
    for word in $before
        # fish has removed the quotes, and has expanded nothing.
        if string match -qr '^~(/|$)' -- $word
            set word (string replace '~' "$HOME" -- $word)
        else if set -l parts (string match -r '^\$(\w+)(.*)$' -- $word)
            set word "$$parts[2]$parts[3]"
        end
        set -a given $word
    end
    set -l word (commandline -cto)
    set -q word[1]; or set word ''
    set -g __fish_record_store_answer (command record-store complete-keys -- $given "$word" 2>/dev/null)
    set -q __fish_record_store_answer[1]; and test "$__fish_record_store_answer[1]" != files
end

function __fish_record_store_offer
    set -l answer $__fish_record_store_answer
    switch "$answer[1]"
        case 'command *'
            # Not __fish_complete_subcommand, which counts the values of options, too.
            set -l before (commandline -opc)
            set -l begin (math (string replace 'command ' '' -- $answer[1]) + 2)
            set -l line (commandline -ct)
            if test (count $before) -ge $begin
                set line (string escape -- $before[$begin..-1]) "$line"
            end
            complete -C "$line"
            return
        case dirs
            __fish_complete_directories (commandline -ct) ''
    end
    set -e answer[1]
    set -q answer[1]; and printf '%s\n' $answer
end

complete -c record-store -n __fish_record_store_ask -f -a "(__fish_record_store_offer)"
