//! Completion of keys: `complete-keys`, which the scripts call, and the scripts in real shells, which must insert exactly
//! the key.

use record_store::RecordStoreExt;

use super::completions::{home, is_installed, runs};
use super::terminal::Terminal;
use super::*;

/// Keys that a shell would take for something else. No two begin with the same character.
const ODD: [&str; 40] = [
    "a b  c", "b:c:d", "c'd'", "d\"e\"", "e$HOME", "f`date`", "g\\h", "h!i!!", "i;j&k|l", "j*?[k]", "k{a,b}",
    "l<m>(n)", "m=n", "n~", "ö€é", "p%s%%", "q ", "r\\", "s'", "t\"", "u!", "v$", "w\\'", "x\\\"", "y-z",
    "z/a/b", "~", "#b", "=c", "%d", "^e", ",f", ":g", "@h", "'i", "\"j", "$k", "`l", "\\m", "!n",
];

/// The program without a shell.
fn ask(scratch: &Scratch, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
    command.args(["complete-keys", "--"]).args(words).current_dir(scratch.0.path());
    command.stdin(Stdio::null()).env_remove("RECORD_STORE_DIR");
    command
}

#[track_caller]
fn assert_answers(scratch: &Scratch, words: &[&str], answer: &[&str]) {
    let answered = output(&mut ask(scratch, words));
    assert_prints(&answered, &answer.iter().flat_map(|line| [line, "\n"]).collect::<String>());
    assert_eq!(answered.stderr, b"");
}

#[test]
fn the_program_tells_the_keys_that_fit() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for key in ["report/1", "report/2", "a b", "-d", "line\nfeed", "esc\u{1b}", "turn\u{202e}", "é"] {
        store.write(key, &1).unwrap();
    }
    store.write_with("gone", &1, record_store::WriteOptions::new().time_to_live(Duration::ZERO)).unwrap();
    assert_answers(&scratch, &["get", "store", ""], &["keys", "a b", "report/1", "report/2", "é"]);
    assert_answers(&scratch, &["get", "store", "rep"], &["keys", "report/1", "report/2"]);
    assert_answers(&scratch, &["get", "store", "report/1", "rep"], &["keys", "report/2"]);
    assert_answers(&scratch, &["get", "store", "--", "-"], &["keys", "-d"]);
    assert_answers(&scratch, &["rm", "store", "--prefix=report/2"], &["value", "report/2"]);
    assert_answers(&scratch, &["put", "-d", "store", "a"], &["keys", "a b"]);
    assert_answers(&scratch, &["get", "store", "x"], &["keys"]);
    assert_answers(&scratch, &["run", "store", "k", "--", "a"], &["command 4"]);
    assert_answers(&scratch, &["export", "store", "a"], &["files"]);
    for nothing in
        [&[][..], &["g"], &["get", "store", "--te"], &["put", "store", "k", ""], &["unknown", "store", ""]]
    {
        assert_answers(&scratch, nothing, &[]);
    }
    assert_answers(&scratch, &["get", "rep"], &["dirs"]);
    let answered = output(ask(&scratch, &["get", "rep"]).env("RECORD_STORE_DIR", "store"));
    assert_prints(&answered, "dirs\nreport/1\nreport/2\n");
    let not_text = output(
        ask(&scratch, &["get", "store"])
            .arg(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff")),
    );
    assert_prints(&not_text, "");
}

#[test]
fn locked_keys_are_completed_where_a_lock_is_wanted() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("record", &1).unwrap();
    let _lock = store.lock("locked", record_store::LockOptions::new()).unwrap();
    assert_answers(&scratch, &["unlock", "store", ""], &["keys", "locked"]);
    assert_answers(&scratch, &["renew", "store", ""], &["keys", "locked"]);
    assert_answers(&scratch, &["lock", "store", ""], &["keys", "locked", "record"]);
    assert_answers(&scratch, &["stat", "store", ""], &["keys", "locked", "record"]);
    assert_answers(&scratch, &["get", "store", ""], &["keys", "record"]);
}

#[test]
fn a_question_waits_for_nothing_and_changes_nothing() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("key", &1).unwrap();
    let _lock = store.lock("key", record_store::LockOptions::new()).unwrap();
    let _latch = scratch.enter_latch("key");
    scratch.touch("store/foreign.json");
    scratch.touch("file");
    let before = crate::tree::snapshot(scratch.0.path());
    assert_answers(&scratch, &["get", "store", "k"], &["keys", "key"]);
    assert_answers(&scratch, &["unlock", "store", "k"], &["keys", "key"]);
    for dir in ["none", "file", ".", "", "/dev/null", "postgres://"] {
        assert_answers(&scratch, &["put", dir, "k"], &["keys"]);
    }
    crate::tree::assert_unchanged(scratch.0.path(), &before, "complete-keys");
    // This server accepts connections, and never answers.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://user@{}/db", server.local_addr().unwrap());
    assert_answers(&scratch, &["get", &url, "k"], &["keys"]);
    // Errors are silent.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let answered = output(ask(&scratch, &["get", "store", ""]).stdout(full));
    assert_prints(&answered, "");
    assert_eq!(answered.stderr, b"");
}

#[test]
fn the_question_of_the_scripts_is_shown_nowhere() {
    let scratch = Scratch::new();
    let program = || Command::new(env!("CARGO_BIN_EXE_record-store"));
    for arguments in [&["--help"][..], &["help"], &["complete-key"], &["complete-keys"], &["man", "."]] {
        let printed = output(program().args(arguments).current_dir(scratch.0.path()));
        let text = String::from_utf8([printed.stdout, printed.stderr].concat()).unwrap();
        assert!(!text.replace("subcommand 'complete-key", "").contains("complete-key"), "{text}");
    }
    for page in crate::support::names_in(scratch.0.path()) {
        assert!(!fs::read_to_string(scratch.path(&page)).unwrap().contains("complete\\-key"), "{page}");
    }
}

/// A shell on a terminal, in a directory with stores. In the place of the program there is a function that prints its
/// arguments, so the shell has really evaluated what it completed. The scripts call the program itself.
struct Shell {
    terminal: Terminal,
    _lock: record_store::OwnedLockGuard<FileSystemRecordStore>,
    home: Scratch,
}

impl Shell {
    fn start(command: &mut Command, home: Scratch, setup: &str) -> Self {
        let store = |name: &str, keys: &[&str]| {
            let store = FileSystemRecordStore::open(home.path(name)).unwrap();
            for key in keys {
                store.write(*key, &1).unwrap();
            }
            store
        };
        store("odd", &ODD);
        store("x=y:z", &["a=b:c"]);
        store("quote", &["'x"]);
        store("double", &["\"x"]);
        store("bang", &["!x"]);
        let store = store("my store", &["report/2025", "report/2026", "report 3", "a 1", "a$2", "--x"]);
        let lock = std::sync::Arc::new(store).lock_owned("locked", record_store::LockOptions::new()).unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_record-store")).parent().unwrap();
        let path =
            format!("{}:{}:{}", home.path("bin").display(), bin.display(), std::env::var("PATH").unwrap());
        fs::create_dir(home.path("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/true", home.path("bin/tested-command")).unwrap();
        command.current_dir(home.0.path()).env("HOME", home.0.path()).env("ZDOTDIR", home.0.path());
        command.env("XDG_DATA_HOME", home.path(".local/share")).env("XDG_CONFIG_HOME", home.path(".config"));
        command.env("INPUTRC", "/dev/null").env("TERM", "dumb").env("PATH", path).env("LC_ALL", "C.UTF-8");
        command.env_remove("RECORD_STORE_DIR");
        let mut terminal = Terminal::start(command);
        terminal.type_in(setup);
        terminal.type_in("\necho set''up\n");
        terminal.wait_until("the setup", |raw| raw.contains("setup"));
        Self { terminal, _lock: lock, home }
    }

    /// Types this after the name of the program, with Tab for `⇥`, and checks the arguments that the program gets.
    #[track_caller]
    fn check(&mut self, typed: &str, arguments: &[&str]) {
        let expected: String = arguments.iter().flat_map(|argument| ["<", argument, ">"]).collect();
        let expected = expected + "<end>";
        // Other checks have printed before, and perhaps the same.
        let count = |raw: &str, text: &str| raw.matches(text).count();
        let before = self.terminal.raw();
        let (ends, printed) = (count(&before, "<end>"), count(&before, &expected));
        self.terminal.type_in(&format!("record-store {}\n", typed.replace('⇥', "\t")));
        let raw = self.terminal.wait_until(&format!("{typed}: {expected}"), |raw| count(raw, "<end>") > ends);
        let last = raw.rsplit("<end>").nth(1).unwrap_or_default();
        assert!(count(&raw, &expected) > printed, "{typed}: {expected}: {last:?}");
    }

    fn exit(mut self) {
        self.terminal.type_in("exit\n");
        self.terminal.end();
    }
}

const FUNCTION: &str = "record-store() { printf '<%s>' \"${@%/}\"; echo '<end>'; }";

/// The first character of each key is typed, unquoted and in both kinds of quotes.
///
/// In double quotes, the shell needs a backslash before some characters.
fn check_odd_keys(shell: &mut Shell, in_double_quotes: &str) {
    for key in ODD {
        let first = key.chars().next().unwrap();
        let backslash = if first.is_alphanumeric() { "" } else { "\\" };
        shell.check(&format!("get odd {backslash}{first}⇥"), &["get", "odd", key]);
        for quote in ['\'', '"'] {
            let backslash = if quote == '"' && in_double_quotes.contains(first) { "\\" } else { "" };
            // No quotes hide these characters in all shells.
            if first != quote && first != '!' && first != '\\' {
                shell.check(&format!("get odd {quote}{backslash}{first}⇥"), &["get", "odd", key]);
            }
        }
    }
}

/// Completions that are the same in all shells. `backslash`: the character to type before a space after an ambiguous completion: zsh has
/// inserted one already.
fn check_places(shell: &mut Shell, backslash: &str) {
    for (typed, arguments) in [
        ("get my\\ store rep⇥/⇥5⇥", &["get", "my store", "report/2025"][..]),
        ("get 'my store' report/2025 report\\ ⇥", &["get", "my store", "report/2025", "report 3"]),
        ("get \"my store\" a⇥? ⇥", &["get", "my store", "a 1"]),
        ("get 'my store' a⇥?$⇥", &["get", "my store", "a$2"]),
        ("rm --dir 'my store' 'a⇥ ⇥ report\\ ⇥", &["rm", "--dir", "my store", "a 1", "report 3"]),
        ("rm 'my store' --prefix report\\ ⇥", &["rm", "my store", "--prefix", "report 3"]),
        ("rm 'my store' --prefix=report\\ ⇥", &["rm", "my store", "--prefix=report 3"]),
        ("get 'my store' -- --⇥", &["get", "my store", "--", "--x"]),
        ("unlock my⇥ ⇥", &["unlock", "my store", "locked"]),
        ("put --wait 5s odd b⇥ --te⇥", &["put", "--wait", "5s", "odd", "b:c:d", "--text"]),
        // Splitting at these characters would be wrong.
        ("get 'x=y:z' a=⇥", &["get", "x=y:z", "a=b:c"]),
        ("get x=y:z a=b:⇥", &["get", "x=y:z", "a=b:c"]),
        ("get --dir=x=y:z 'a=b:⇥", &["get", "--dir=x=y:z", "a=b:c"]),
        ("rm x=y:z --prefix=a=b:⇥", &["rm", "x=y:z", "--prefix=a=b:c"]),
        // The first character of the key is the quote, or ends it.
        ("get quote ⇥", &["get", "quote", "'x"]),
        ("get quote '⇥", &["get", "quote", "'x"]),
        ("get quote \"⇥", &["get", "quote", "'x"]),
        ("get double '⇥", &["get", "double", "\"x"]),
        ("get double \"⇥", &["get", "double", "\"x"]),
        ("get bang '⇥", &["get", "bang", "!x"]),
        ("get bang \"⇥", &["get", "bang", "!x"]),
        // The key is there already, or in closed quotes.
        ("get double \"\\\"x⇥", &["get", "double", "\"x"]),
        ("get quote \"'x\"⇥", &["get", "quote", "'x"]),
        ("get \"$HOME\"/odd z⇥", &["get", "HOME/odd", "z/a/b"]),
        ("get ~/odd z⇥", &["get", "HOME/odd", "z/a/b"]),
        // The commands are completed as such.
        ("run odd k -- ls direc⇥", &["run", "odd", "k", "--", "ls", "directory"]),
        ("lock --wait 1s odd k -- ./direc⇥", &["lock", "--wait", "1s", "odd", "k", "--", "./directory"]),
        ("run odd k -- tested-com⇥", &["run", "odd", "k", "--", "tested-command"]),
        ("export --dir odd direc⇥", &["export", "--dir", "odd", "directory"]),
    ] {
        let home = shell.home.0.path().to_str().unwrap().to_owned();
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.replace("HOME", &home)).collect();
        let arguments: Vec<_> = arguments.iter().map(|argument| &**argument).collect();
        shell.check(&typed.replace('?', backslash), &arguments);
    }
    shell.terminal.type_in("export RECORD_STORE_DIR=odd\n");
    shell.check("get y⇥", &["get", "y-z"]);
    shell.check("get direc⇥", &["get", "directory"]);
    shell.check("run y⇥ -- tested-com⇥", &["run", "y-z", "--", "tested-command"]);
    shell.check("get 'my store' report/2025 report\\ ⇥", &["get", "my store", "report/2025", "report 3"]);
}

#[test]
fn bash_inserts_exactly_the_key() {
    if !is_installed("bash", runs("bash")) {
        return;
    }
    let file = ".local/share/bash-completion/completions/record-store";
    let package = "/usr/share/bash-completion/bash_completion";
    let mut setups = vec![file];
    setups.extend(is_installed("bash-completion", Path::new(package).exists()).then_some(package));
    for setup in setups {
        let home = home("bash", file);
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-i"]);
        let mut shell = Shell::start(&mut bash, home, &format!("source {setup}; {FUNCTION}"));
        check_odd_keys(&mut shell, "$`");
        check_places(&mut shell, "\\");
        // Each Tab inserts the next one.
        shell.terminal.type_in("bind 'TAB: menu-complete'\n");
        shell.check("get 'my store' r⇥", &["get", "my store", "report 3"]);
        shell.check("get 'my store' r⇥⇥", &["get", "my store", "report/2025"]);
        shell.check("get my\\ store \"a⇥⇥", &["get", "my store", "a$2"]);
        shell.exit();
    }
}

#[test]
fn zsh_inserts_exactly_the_key() {
    if !is_installed("zsh", runs("zsh")) {
        return;
    }
    let home = home("zsh", ".zfunc/_record-store");
    let setup = format!("fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit -u -D; {FUNCTION}");
    let mut shell = Shell::start(Command::new("zsh").args(["-f", "-i"]), home, &setup);
    check_odd_keys(&mut shell, "$`");
    check_places(&mut shell, "");
    shell.exit();
}

#[test]
fn fish_inserts_exactly_the_key() {
    if !is_installed("fish", runs("fish")) {
        return;
    }
    let home = home("fish", ".config/fish/completions/record-store.fish");
    let function =
        "function record-store; printf '<%s>' (string replace -r '/$' '' -- $argv); echo '<end>'; end";
    let mut fish = Command::new("fish");
    fish.args(["--interactive", "--init-command", function]);
    let mut shell = Shell::start(&mut fish, home, "");
    check_odd_keys(&mut shell, "$");
    check_places(&mut shell, "\\");
    shell.exit();
}
