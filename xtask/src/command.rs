//! Other programs, run to their end: quiet when they succeed, quoted when they fail.

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use anyhow::{anyhow, bail};

/// How much of a failed program's output is worth showing.
const SHOWN_LINES: usize = 60;
/// Programs that `setup` relies on instead of installing them, with their packages.
const BEFORE_SETUP: [(&str, &str); 6] = [
    ("apt-cache", "apt"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("rustc", "rustup"),
    ("sh", "dash"),
    ("tar", "tar"),
];

/// Runs a program without input and returns what it wrote to its standard output.
pub(crate) fn read(command: &mut Command) -> anyhow::Result<String> {
    let output = capture(command)?;
    if !output.status.success() {
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!("{} failed ({})\n{}", name(command), output.status, last_lines(&text, SHOWN_LINES));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program without input and returns all that it said, whether it succeeded or not.
pub(crate) fn capture(command: &mut Command) -> anyhow::Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|error| cannot_start(command, &error))
}

/// The error for a program that could not be started, with what to do about it.
pub(crate) fn cannot_start(command: &Command, error: &std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        return missing(&program);
    }
    anyhow!("cannot start {program}: {error}")
}

fn missing(program: &str) -> anyhow::Error {
    match BEFORE_SETUP.iter().find(|(known, _)| *known == program) {
        Some((_, package)) => anyhow!("{program} is missing: install the package {package}"),
        None => anyhow!("{program} is missing: run `cargo xtask setup`"),
    }
}

/// An error, with what to do about it, unless a program of this name is there: for what a shell is going to run.
pub(crate) fn require(program: &str) -> anyhow::Result<()> {
    if exists(program) { Ok(()) } else { Err(missing(program)) }
}

/// Whether a program of this name is on the search path.
pub(crate) fn exists(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The command as one would type it, for messages that ask the user to do so.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn name(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    match command.get_args().find(|word| !word.to_string_lossy().starts_with('-')) {
        Some(first) => format!("{program} {}", first.to_string_lossy()),
        None => program,
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:./,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_quoted_where_a_shell_needs_it() {
        let mut command = Command::new("apt-get");
        command.args(["-o", "Dir=/a b", "it's", "plain:1.0"]);
        assert_eq!(line(&command), r"apt-get -o 'Dir=/a b' 'it'\''s' plain:1.0");
    }

    #[test]
    fn a_missing_program_is_named_with_the_way_out() {
        let error = read(&mut Command::new("bulkhead-no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "bulkhead-no-such-program is missing: run `cargo xtask setup`");
        assert_eq!(missing("dpkg-deb").to_string(), "dpkg-deb is missing: install the package dpkg");
        assert!(require("bulkhead-no-such-program").is_err() && require("sh").is_ok());
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let error = read(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
