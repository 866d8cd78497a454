//! `cargo xtask size`: how much there is to trust.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bulkhead::config::Architecture;

use crate::build::{self, ARCHITECTURES};
use crate::source::{self, Line, Unsafe};
use crate::workspace;

mod bytes;

use bytes::Table;

/// What a crate is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Runs in every hypervisor.
    Trusted,
    /// Runs in that of one architecture.
    TrustedOn(Architecture),
    /// Never does.
    Tool,
}

impl Role {
    fn is_trusted_on(self, architecture: Architecture) -> bool {
        self == Self::Trusted || self == Self::TrustedOn(architecture)
    }
}

const CRATES: [(&str, &str, Role); 8] = [
    ("bulkhead", "src", Role::Trusted),
    ("bulkhead-vdev", "vdev/src", Role::Trusted),
    ("bulkhead-firmware-stubs", "firmware-stubs/src", Role::Trusted),
    ("bulkhead-aarch64", "arch/aarch64/src", Role::TrustedOn(Architecture::Aarch64)),
    ("bulkhead-x86_64", "arch/x86_64/src", Role::TrustedOn(Architecture::X86_64)),
    ("bulkhead-test-guests", "tests/guests/src", Role::Tool),
    ("bulkhead-test-guests-x86", "tests/guests-x86/src", Role::Tool),
    ("xtask", "xtask/src", Role::Tool),
];

/// Figures of a crate, a file, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Figures {
    /// Lines with code, tests left out.
    code_lines: usize,
    /// Lines with code in tests.
    test_lines: usize,
    /// Unsafe blocks and implementations, tests left out.
    unsafe_places: usize,
    /// Those that do not say why they are sound.
    without_reason: usize,
    /// Code lines inside of unsafe blocks.
    unsafe_lines: usize,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.code_lines += other.code_lines;
        self.test_lines += other.test_lines;
        self.unsafe_places += other.unsafe_places;
        self.without_reason += other.without_reason;
        self.unsafe_lines += other.unsafe_lines;
    }
}

/// Prints the table.
pub(crate) fn run() -> anyhow::Result<()> {
    println!(
        "{:<26} {:>8} {:>8} {:>8} {:>12} {:>14}",
        "crate", "code", "tests", "unsafe", "no SAFETY", "unsafe lines"
    );
    let mut trusted = ARCHITECTURES.map(|architecture| (architecture, Figures::default()));
    for (name, folder, role) in CRATES {
        let figures = count_folder(&workspace::root().join(folder))?;
        row(name, figures);
        for (architecture, sum) in &mut trusted {
            if role.is_trusted_on(*architecture) {
                *sum += figures;
            }
        }
    }
    for (architecture, sum) in trusted {
        row(&format!("trusted base, {architecture}"), sum);
    }
    for architecture in ARCHITECTURES {
        build::hypervisor(architecture)?;
        let program = build::hypervisor_elf(architecture);
        let content =
            std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        print!("\nhypervisor, {architecture}\n{}", Table::read(&content)?);
    }
    Ok(())
}

fn row(name: &str, figures: Figures) {
    let Figures { code_lines, test_lines, unsafe_places, without_reason, unsafe_lines } = figures;
    let permille = (unsafe_lines * 1000).checked_div(code_lines).unwrap_or(0);
    let share = format!("{unsafe_lines} ({}.{} %)", permille / 10, permille % 10);
    println!(
        "{name:<26} {code_lines:>8} {test_lines:>8} {unsafe_places:>8} {without_reason:>12} {share:>14}"
    );
}

fn count_folder(folder: &Path) -> anyhow::Result<Figures> {
    let mut sum = Figures::default();
    let mut rust = Vec::new();
    for path in code_files(folder)? {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if path.extension().is_some_and(|extension| extension == "rs") {
            rust.push((path, source::lines(&text)));
        } else {
            sum += count_assembly(&text);
        }
    }
    let tests: Vec<PathBuf> = rust
        .iter()
        .flat_map(|(path, lines)| source::test_modules(lines).map(|name| module_folder(path).join(name)))
        .collect();
    for (path, lines) in &rust {
        let is_test = tests.iter().any(|module| path.with_extension("").starts_with(module));
        sum += if is_test { count_test(lines) } else { count(lines) };
    }
    Ok(sum)
}

/// Where the files of the modules that `path` declares lie.
fn module_folder(path: &Path) -> PathBuf {
    let is_root = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| path.ends_with(name));
    if is_root { path.with_file_name("") } else { path.with_extension("") }
}

fn code_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(code_files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "S" || extension == "s")
        {
            found.push(path);
        }
    }
    Ok(found)
}

fn count(lines: &[Line]) -> Figures {
    let of = |test: bool| lines.iter().filter(|line| line.counts && line.is_test == test).count();
    let mut figures = Figures { code_lines: of(false), test_lines: of(true), ..Figures::default() };
    for (index, kind) in source::unsafe_places(lines) {
        if lines[index].is_test || kind == Unsafe::Other {
            continue;
        }
        figures.unsafe_places += 1;
        figures.without_reason += usize::from(!source::has_safety_comment(lines, index));
        if kind == Unsafe::Block {
            figures.unsafe_lines += block_lines(&lines[index..]);
        }
    }
    figures
}

/// A file that only tests have.
fn count_test(lines: &[Line]) -> Figures {
    Figures { test_lines: lines.iter().filter(|line| line.counts).count(), ..Figures::default() }
}

/// Code lines from the one on which an unsafe block begins to the one on which it ends.
fn block_lines(lines: &[Line]) -> usize {
    let mut depth = 0_usize;
    let mut count = 0;
    for (index, line) in lines.iter().enumerate() {
        count += usize::from(line.counts);
        let start = if index == 0 { line.code.find("unsafe").unwrap_or(0) } else { 0 };
        for letter in line.code[start..].chars() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 1 => return count,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    count
}

/// Assembly: lines that are neither blank nor only a comment.
fn count_assembly(text: &str) -> Figures {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    Figures { code_lines: text.lines().filter(is_code).count(), ..Figures::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_tests_and_unsafe_blocks_are_counted_apart() {
        let text = "//! Doc.\nfn a() {\n    // SAFETY: fine.\n    unsafe {\n        b();\n    }\n    unsafe { c() }\n}\n\
            #[cfg(test)]\nmod tests {\n    fn d() { unsafe { e() } }\n}\n";
        let expected =
            Figures { code_lines: 6, test_lines: 4, unsafe_places: 2, without_reason: 1, unsafe_lines: 4 };
        assert_eq!(count(&source::lines(text)), expected);
    }

    #[test]
    fn files_that_only_tests_have_are_tests() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("lib.rs"), "mod a;\n").unwrap();
        std::fs::write(folder.path().join("a.rs"), "fn a() {}\n#[cfg(test)]\npub(crate) mod tests;\n")
            .unwrap();
        std::fs::write(folder.path().join("a/tests.rs"), "fn b() {\n    unsafe { c() }\n}\n").unwrap();
        let expected = Figures { code_lines: 2, test_lines: 5, ..Figures::default() };
        assert_eq!(count_folder(folder.path()).unwrap(), expected);
    }

    #[test]
    fn assembly_is_counted_without_its_comments() {
        assert_eq!(count_assembly("// a\n\n  mov x0, x1 // b\nc:\n").code_lines, 2);
    }
}
