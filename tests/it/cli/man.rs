//! `man`: the manual pages.

use super::completions::SUBCOMMANDS;
use super::*;

fn write(dir: &Path) -> Output {
    output(Command::new(env!("CARGO_BIN_EXE_record-store")).arg("man").arg(dir))
}

#[test]
fn there_is_a_page_for_the_program_and_each_subcommand() {
    let scratch = Scratch::new();
    let dir = scratch.path("share/man1");
    // Also over pages that are there.
    for _ in 0..2 {
        assert_prints(&write(&dir), "");
    }
    let mut names: Vec<_> = SUBCOMMANDS.iter().map(|name| format!("record-store-{name}.1")).collect();
    names.push("record-store.1".to_owned());
    names.sort();
    let mut written = crate::support::names_in(&dir);
    written.sort();
    assert_eq!(written, names);
    for name in names {
        let page = fs::read_to_string(dir.join(&name)).unwrap();
        let command = name.trim_end_matches(".1");
        assert!(page.contains(&format!(".SH NAME\n{} ", command.replace('-', "\\-"))), "{page}");
        assert!(page.contains(".SH EXAMPLES\n.nf\n  ") && page.contains("quiet"), "{name}: {page}");
        assert!(page.ends_with(".fi\n") || name == "record-store.1", "{name}: {page}");
        assert!(page.is_ascii(), "{name}");
        let has_codes = page.contains(".fi\n.SH EXIT STATUS\n.nf\n  0      success\n");
        assert_eq!(has_codes, matches!(command, "record-store" | "record-store-run"), "{name}: {page}");
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(dir.join(&name));
        match groff.output() {
            Ok(formatted) => {
                assert_code(&formatted, 0);
                assert!(formatted.stderr.is_empty(), "{name}: {formatted:?}");
            }
            Err(error) => eprintln!("SKIPPED: groff does not run: {error}"),
        }
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error() {
    let scratch = Scratch::new();
    scratch.touch("file");
    let message = assert_fails(&write(&scratch.path("file")), 74);
    assert!(message.contains("cannot write") && message.contains("/file"), "{message}");
    fs::create_dir_all(scratch.path("dir/record-store-get.1")).unwrap();
    let message = assert_fails(&write(&scratch.path("dir")), 74);
    assert!(message.contains("/dir/record-store-get.1"), "{message}");
}
