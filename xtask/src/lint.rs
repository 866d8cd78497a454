//! The house rules that a machine can check and that neither rustc nor Clippy knows.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::source::{self, Line, Unsafe};
use crate::{command, workspace};

/// A file of the project.
struct File {
    /// Relative to the checkout, with `/`.
    path: String,
    text: String,
    /// Only for Rust.
    lines: Vec<Line>,
}

/// A rule that is broken, and where.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Longer files hide their structure.
const LONGEST_FILE: usize = 600;
/// Words of one CPU vendor; the core and the device models must not know them.
const VENDOR_WORDS: [&str; 9] = ["vmcs", "vmcb", "ept", "npt", "esr", "vttbr", "msr", "vmx", "svm"];
/// Crates whose root must forbid unsafe code.
const SAFE_CRATES: [&str; 3] = ["vdev/src/lib.rs", "firmware-stubs/src/lib.rs", "xtask/src/main.rs"];
/// Where the core declares the seam, takes the loader's word, and copies in and out of guest RAM.
const UNSAFE_IN_CORE: [&str; 3] = ["src/arch.rs", "src/memory/claim.rs", "src/memory/guest_ram.rs"];
/// What README.md must tell a newcomer.
const COMMANDS: [&str; 2] = ["cargo xtask run", "cargo xtask test"];
/// Hosts of registries and package archives, as domain labels: a clone must work with whatever the machine is set up to use.
const HOSTS: [&[&str]; 7] = [
    &["crates", "io"],
    &["deb", "debian", "org"],
    &["security", "debian", "org"],
    &["snapshot", "debian", "org"],
    &["archive", "ubuntu", "com"],
    &["registry", "npmjs", "org"],
    &["pypi", "org"],
];

type Rule = fn(&File) -> Vec<Finding>;
const RULES: [Rule; 8] = [
    architecture_switches,
    vendor_words,
    long_files,
    host_names,
    unsafe_reasons,
    unsafe_permissions,
    unfinished,
    forbidding_roots,
];

/// Every finding in the checkout.
pub(crate) fn run() -> anyhow::Result<Vec<Finding>> {
    let files = files()?;
    let mut findings: Vec<Finding> =
        files.iter().flat_map(|file| RULES.iter().flat_map(|rule| rule(file))).collect();
    findings.extend(missing_commands(&files));
    Ok(findings)
}

fn files() -> anyhow::Result<Vec<File>> {
    let mut list = Command::new("git");
    list.current_dir(workspace::root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let paths =
        command::read(&mut list).context("the house rules are for what git knows: this must be a clone")?;
    // A file may be gone from the folder and still be known; what is no text has no rules.
    let read = |path: &str| Some(file(path, &std::fs::read_to_string(workspace::root().join(path)).ok()?));
    Ok(paths.lines().filter_map(read).collect())
}

fn file(path: &str, text: &str) -> File {
    let lines = if path.ends_with(".rs") { source::lines(text) } else { Vec::new() };
    File { path: path.to_owned(), text: text.to_owned(), lines }
}

impl File {
    fn finding(&self, index: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: index + 1, what: what.into() }
    }

    /// A finding for each line of code that `is_bad`.
    fn bad_code(&self, what: &str, is_bad: impl Fn(&Line) -> bool) -> Vec<Finding> {
        let bad = self.lines.iter().enumerate().filter(|(_, line)| is_bad(line));
        bad.map(|(index, _)| self.finding(index, what)).collect()
    }

    /// Whether this is the part of a back end that touches hardware.
    fn is_hardware(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        matches!(parts.as_slice(), ["arch", _, "src", "hw", ..])
    }

    /// Whether this is a file of tests alone, which no program contains.
    fn is_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs")
    }

    fn is_test_guest(&self) -> bool {
        self.path.starts_with("tests/guests/") || self.path.starts_with("tests/guests-x86/")
    }

    /// Whether this is where a back end makes the promise that the seam asks of it.
    fn makes_promise(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        matches!(
            parts.as_slice(),
            ["arch", "aarch64", "src", "el2", "mod.rs"] | ["arch", "x86_64", "src", "x86.rs"]
        )
    }
}

fn architecture_switches(file: &File) -> Vec<Finding> {
    if file.is_hardware() || file.is_test_guest() {
        return Vec::new();
    }
    let what = "cfg(target_arch) belongs into arch/*/src/hw";
    file.bad_code(what, |line| line.code.contains("cfg") && line.code.contains("target_arch"))
}

fn vendor_words(file: &File) -> Vec<Finding> {
    if !file.path.starts_with("src/") && !file.path.starts_with("vdev/src/") {
        return Vec::new();
    }
    let texts = file.text.lines().enumerate();
    let found = texts.flat_map(|(index, text)| {
        let words = VENDOR_WORDS.iter().filter(move |word| source::has_word(text, word));
        words.map(move |word| {
            file.finding(index, format!("`{word}` is a CPU vendor's word: it belongs into arch/"))
        })
    });
    found.collect()
}

fn long_files(file: &File) -> Vec<Finding> {
    let is_code = file.path.ends_with(".rs") || file.path.ends_with(".S");
    let count = file.text.lines().count();
    if !is_code || count <= LONGEST_FILE {
        return Vec::new();
    }
    vec![file.finding(LONGEST_FILE, format!("{count} lines: divide files above {LONGEST_FILE}"))]
}

fn host_names(file: &File) -> Vec<Finding> {
    // Cargo itself writes where packages come from.
    if file.path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let hosts = HOSTS.map(|labels| labels.join("."));
    let texts = file.text.lines().enumerate();
    let found = texts.filter(|(_, text)| hosts.iter().any(|host| text.contains(host.as_str())));
    found
        .map(|(index, _)| file.finding(index, "names a registry's host: use what the machine is set up with"))
        .collect()
}

fn unsafe_reasons(file: &File) -> Vec<Finding> {
    let places = source::unsafe_places(&file.lines).into_iter();
    let silent = places.filter(|&(index, kind)| {
        matches!(kind, Unsafe::Block | Unsafe::Implementation)
            && !source::has_safety_comment(&file.lines, index)
    });
    silent.map(|(index, _)| file.finding(index, "unsafe without a SAFETY comment")).collect()
}

fn unsafe_permissions(file: &File) -> Vec<Finding> {
    if file.is_hardware() || file.is_test() || UNSAFE_IN_CORE.contains(&file.path.as_str()) {
        return Vec::new();
    }
    if file.makes_promise() {
        return more_than_promise(file);
    }
    let what = "only arch/*/src/hw, the `impl Arch`, the seam, the named modules of src/memory and tests may opt into unsafe code";
    file.bad_code(what, |line| {
        !line.is_test
            && ["allow(unsafe_code", "expect(unsafe_code", "warn(unsafe_code"]
                .iter()
                .any(|opt| line.code.contains(opt))
    })
}

/// Unsafe code other than an `unsafe impl`.
fn more_than_promise(file: &File) -> Vec<Finding> {
    let what = "only `unsafe impl Arch` may be here: what is unsafe besides belongs into arch/*/src/hw";
    let places = source::unsafe_places(&file.lines).into_iter();
    let others = places.filter(|&(_, kind)| kind != Unsafe::Implementation);
    others.map(|(index, _)| file.finding(index, what)).collect()
}

fn unfinished(file: &File) -> Vec<Finding> {
    let is_unfinished = |text: &str| {
        text.split(|letter: char| !letter.is_alphanumeric())
            .any(|word| word == "TODO" || word == "FIXME" || word == "XXX")
    };
    file.bad_code("unfinished: do it, or open an issue", |line| is_unfinished(&line.comment))
}

fn forbidding_roots(file: &File) -> Vec<Finding> {
    let forbids = |line: &Line| line.code.contains("#![forbid(unsafe_code)]");
    if !SAFE_CRATES.contains(&file.path.as_str()) || file.lines.iter().any(forbids) {
        return Vec::new();
    }
    vec![file.finding(0, "this crate must forbid unsafe code")]
}

fn missing_commands(files: &[File]) -> Vec<Finding> {
    let readme = files.iter().find(|file| Path::new(&file.path) == Path::new("README.md"));
    let text = readme.map_or("", |file| file.text.as_str());
    let missing = COMMANDS.iter().filter(|command| !text.contains(**command));
    missing
        .map(|command| Finding {
            path: "README.md".to_owned(),
            line: 1,
            what: format!("does not name `{command}`"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_found(rule: Rule, path: &str, text: &str) -> Vec<usize> {
        rule(&file(path, text)).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_switch_on_the_architecture_is_allowed_only_next_to_the_hardware() {
        let text = "fn a() {}\n#[cfg(target_arch = \"aarch64\")]\nfn b() {}\n// cfg(target_arch)\n";
        assert_eq!(lines_found(architecture_switches, "src/vm.rs", text), [2]);
        assert!(lines_found(architecture_switches, "arch/aarch64/src/hw/mod.rs", text).is_empty());
    }

    #[test]
    fn vendor_words_are_found_even_in_comments_but_only_in_the_core() {
        let text = "// reads the ESR\nlet accept = 1;\nconst MSR_X: u32 = 1;\n";
        assert_eq!(lines_found(vendor_words, "src/vm.rs", text), [1, 3]);
        assert!(lines_found(vendor_words, "arch/aarch64/src/esr.rs", text).is_empty());
    }

    #[test]
    fn long_files_are_found() {
        assert!(lines_found(long_files, "a.rs", &"x\n".repeat(LONGEST_FILE)).is_empty());
        assert_eq!(lines_found(long_files, "a.rs", &"x\n".repeat(LONGEST_FILE + 1)), [LONGEST_FILE + 1]);
        assert!(lines_found(long_files, "a.md", &"x\n".repeat(LONGEST_FILE + 1)).is_empty());
    }

    #[test]
    fn hosts_are_found_everywhere_but_in_the_lock_file() {
        let text = format!("see https://{}\n", HOSTS[0].join("."));
        assert_eq!(lines_found(host_names, "README.md", &text), [1]);
        assert!(lines_found(host_names, "Cargo.lock", &text).is_empty());
    }

    #[test]
    fn unsafe_blocks_must_say_why_and_stand_where_they_may() {
        assert_eq!(lines_found(unsafe_reasons, "a.rs", "fn a() {\n    unsafe { b() }\n}\n"), [2]);
        assert!(lines_found(unsafe_reasons, "a.rs", "// SAFETY: b is fine.\nunsafe { b() }\n").is_empty());
        let text = "#![expect(unsafe_code, reason = \"x\")]\n";
        assert_eq!(lines_found(unsafe_permissions, "src/vm.rs", text), [1]);
        let allowed = [
            "src/memory/guest_ram.rs",
            "arch/aarch64/src/hw/start.rs",
            "arch/x86_64/src/machine/tests.rs",
            "firmware-stubs/tests/acpi_oracle.rs",
            "tests/fake/mod.rs",
        ];
        for path in allowed {
            assert!(lines_found(unsafe_permissions, path, text).is_empty(), "{path}");
        }
    }

    #[test]
    fn a_back_end_may_promise_outside_of_hw_and_do_no_more() {
        let text = "#[expect(unsafe_code, reason = \"x\")]\nunsafe impl Arch for El2 {}\n";
        let more = format!("{text}fn a() {{ unsafe {{ b() }} }}\n");
        for path in ["arch/aarch64/src/el2/mod.rs", "arch/x86_64/src/x86.rs"] {
            assert!(lines_found(unsafe_permissions, path, text).is_empty());
            assert_eq!(lines_found(unsafe_permissions, path, &more), [3]);
        }
        assert_eq!(lines_found(unsafe_permissions, "arch/x86_64/src/vcpu.rs", text), [1]);
    }

    #[test]
    fn unfinished_work_is_found_in_comments_only() {
        let mark = ["TO", "DO"].concat();
        assert_eq!(lines_found(unfinished, "a.rs", &format!("// {mark}: later\nlet a = \"{mark}\";\n")), [1]);
    }

    #[test]
    fn pure_crates_must_forbid_unsafe_code() {
        assert_eq!(lines_found(forbidding_roots, "vdev/src/lib.rs", "//! Doc.\n"), [1]);
        assert!(lines_found(forbidding_roots, "vdev/src/lib.rs", "#![forbid(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn the_readme_names_both_commands() {
        assert_eq!(missing_commands(&[]).len(), 2);
        assert!(
            missing_commands(&[file("README.md", "`cargo xtask run` and `cargo xtask test`")]).is_empty()
        );
    }
}
