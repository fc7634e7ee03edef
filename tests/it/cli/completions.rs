//! `completions`: the scripts in real shells, installed as the help says.

use super::terminal::Terminal;
use super::*;

pub(super) const SUBCOMMANDS: [&str; 17] = [
    "run",
    "lock",
    "get",
    "put",
    "rm",
    "ls",
    "stat",
    "locks",
    "renew",
    "unlock",
    "export",
    "import",
    "verify",
    "gc",
    "watch",
    "completions",
    "man",
];

/// The text before Tab, and the arguments of the program after it.
const COMPLETED: [(&str, &str); 7] = [
    ("imp", "<import>"),
    ("put dir key --te", "<put><dir><key><--text>"),
    ("put dir key --relaxed --te", "<put><dir><key><--relaxed><--text>"),
    ("import dir --existing ov", "<import><dir><--existing><overwrite>"),
    ("import --existing sk", "<import><--existing><skip>"),
    ("completions fi", "<completions><fish>"),
    ("export direc", "<export><directory>"),
];

/// The script for the shell.
fn script(shell: &str) -> String {
    let printed = output(Command::new(env!("CARGO_BIN_EXE_record-store")).args(["completions", shell]));
    assert_code(&printed, 0);
    String::from_utf8(printed.stdout).unwrap()
}

/// A home directory in which the script is installed as `file`.
pub(super) fn home(shell: &str, file: &str) -> Scratch {
    let home = Scratch::new();
    let file = home.path(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, script(shell)).unwrap();
    fs::create_dir(home.path("directory")).unwrap();
    home
}

/// Whether `what` is there. If it is not, the test is skipped, unless the environment demands all shells.
pub(super) fn is_installed(what: &str, found: bool) -> bool {
    let demands = ["RECORD_STORE_ALL_SHELLS", "CI"].into_iter().find(|name| std::env::var_os(name).is_some());
    if let Some(name) = demands.filter(|_| !found) {
        panic!("{what} is not installed, and {name} is set");
    }
    if !found {
        // The test runner hides the output of a macro.
        std::io::stderr().write_all(format!("SKIPPED: {what} is not installed\n").as_bytes()).unwrap();
    }
    found
}

pub(super) fn runs(shell: &str) -> bool {
    Command::new(shell).args(["-c", "true"]).status().is_ok_and(|status| status.success())
}

/// Types into an interactive shell, on a terminal, with Tab after each command line. In the place of the
/// program there is a function that prints its arguments.
fn check_interactively(shell: &mut Command, home: &Scratch, setup: &str) {
    shell.current_dir(home.0.path()).env("HOME", home.0.path()).env("ZDOTDIR", home.0.path());
    shell.env("XDG_DATA_HOME", home.path(".local/share")).env("INPUTRC", "/dev/null").env("TERM", "dumb");
    let mut terminal = Terminal::start(shell);
    let program = "record-store() { printf '<%s>' \"${@%/}\"; echo '<end>'; }";
    terminal.type_in(&format!("{setup}\n{program}\necho set''up\n"));
    terminal.wait_until("the setup", |raw| raw.contains("setup"));
    let helps = SUBCOMMANDS.map(|name| (format!("{name} --he"), format!("<{name}><--help>")));
    let completed = COMPLETED.map(|(typed, arguments)| (typed.to_owned(), arguments.to_owned()));
    for (typed, arguments) in helps.into_iter().chain(completed) {
        let ends = |raw: &str| raw.matches("<end>").count();
        let before = ends(&terminal.raw());
        terminal.type_in(&format!("record-store {typed}\t\n"));
        let raw = terminal.wait_until(&arguments, |raw| ends(raw) > before);
        assert!(raw.contains(&format!("{arguments}<end>")), "{typed}: {raw}");
    }
    terminal.type_in("exit\n");
    terminal.end();
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = script(shell);
        assert!(script.contains("locks") && script.contains("keep-going"), "{shell}: {script}");
        assert!(shell == "fish" || !script.contains("record_store\n"), "{shell}: {script}");
    }
    assert_code(&output(Command::new(env!("CARGO_BIN_EXE_record-store")).args(["completions", "ed"])), 2);
}

#[test]
fn bash_completes_subcommands_options_and_values() {
    if !is_installed("bash", runs("bash")) {
        return;
    }
    let file = ".local/share/bash-completion/completions/record-store";
    let home = home("bash", file);
    let bash = || {
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "-i"]);
        bash
    };
    check_interactively(&mut bash(), &home, &format!("source {file}"));
    // This package loads the script when it is needed.
    let package = "/usr/share/bash-completion/bash_completion";
    if is_installed("bash-completion", Path::new(package).exists()) {
        check_interactively(&mut bash(), &home, &format!("source {package}"));
    }
}

#[test]
fn zsh_completes_subcommands_options_and_values() {
    if !is_installed("zsh", runs("zsh")) {
        return;
    }
    let home = home("zsh", ".zfunc/_record-store");
    let setup = "fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit -u -D";
    check_interactively(Command::new("zsh").args(["-f", "-i"]), &home, setup);
}

#[test]
fn fish_completes_subcommands_options_and_values() {
    if !is_installed("fish", runs("fish")) {
        return;
    }
    let home = home("fish", ".config/fish/completions/record-store.fish");
    // fish loads the script only if the program exists.
    let bin = Path::new(env!("CARGO_BIN_EXE_record-store")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let completed = |typed: &str| {
        let mut fish = Command::new("fish");
        fish.args(["-c", "complete -C \"record-store $argv\"", typed]).current_dir(home.0.path());
        fish.env("HOME", home.0.path()).env("XDG_CONFIG_HOME", home.path(".config")).env("PATH", &path);
        let printed = output(&mut fish);
        assert_code(&printed, 0);
        String::from_utf8(printed.stdout).unwrap()
    };
    let offers = |typed: &str, word: &str| {
        let completed = completed(typed);
        let words = completed.lines().map(|line| line.split('\t').next().unwrap());
        assert!(words.into_iter().any(|offered| offered == word), "{typed}: {completed:?}");
    };
    for name in SUBCOMMANDS {
        offers(&format!("{name} --"), "--help");
    }
    for (typed, word) in [
        ("", "import"),
        ("imp", "import"),
        ("put dir key --", "--text"),
        ("put dir key --relaxed --te", "--text"),
        ("import dir --existing ", "overwrite"),
        ("export direc", "directory/"),
    ] {
        offers(typed, word);
    }
    assert!(!completed("put dir key --").contains("--keep-going"));
}
