//! The bare-metal programs: built by Cargo, flattened to what a boot loader takes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};

use crate::progress::Step;
use crate::setup::ARM_TARGET;
use crate::{command, flatten, workspace};

/// The hypervisor's package, and its program's name.
const HYPERVISOR: &str = "bulkhead-aarch64";
const GUESTS: &str = "bulkhead-test-guests";

/// What this run has built already; also keeps two threads from building at once.
static BUILT: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// The hypervisor as a flat Image.
pub(crate) fn hypervisor() -> anyhow::Result<PathBuf> {
    build(HYPERVISOR, &["--bin", HYPERVISOR], "building the hypervisor")?;
    flat(&hypervisor_elf(), &workspace::target().join("bulkhead/bulkhead.img"))
}

/// Where Cargo leaves the hypervisor with its symbols.
pub(crate) fn hypervisor_elf() -> PathBuf {
    program(HYPERVISOR)
}

/// A test guest as a flat Image; `NAME@0x80000` is one whose header asks for that distance from the start of RAM.
pub(crate) fn guest(name: &str) -> anyhow::Result<PathBuf> {
    let full = name.strip_prefix("guest:").unwrap_or(name);
    let (name, offset) = match full.split_once('@') {
        Some((name, offset)) => (name, parse_offset(offset)?),
        None => (full, 0),
    };
    let known = guests()?;
    if !known.iter().any(|guest| guest == name) {
        bail!("no test guest is called `guest:{name}`: choose one of {}", known.join(", "));
    }
    build(GUESTS, &["--bins"], "building the test guests")?;
    let image = flat(&program(name), &workspace::target().join(format!("bulkhead/guests/{name}.img")))?;
    if offset == 0 {
        return Ok(image);
    }
    let moved = workspace::target().join(format!("bulkhead/guests/{full}.img"));
    let mut bytes = std::fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    if let Some(field) = bytes.get_mut(TEXT_OFFSET) {
        field.copy_from_slice(&offset.to_le_bytes());
    }
    workspace::write(&moved, &bytes)?;
    Ok(moved)
}

/// Where an Image's header says how far from a multiple of 2 MiB it wants to lie (Documentation/arch/arm64/booting).
const TEXT_OFFSET: std::ops::Range<usize> = 8..16;

fn parse_offset(text: &str) -> anyhow::Result<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).with_context(|| format!("`@{text}` is no offset: write it as `@0x80000`"))
}

/// The names of all test guests: each is one file.
fn guests() -> anyhow::Result<Vec<String>> {
    let folder = workspace::root().join("tests/guests/src/bin");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_program = path.is_dir() || path.extension().is_some_and(|extension| extension == "rs");
        // Cargo.toml names each program as its file, with dashes.
        is_program.then(|| path.file_stem().map(|stem| stem.to_string_lossy().replace('_', "-")))?
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn build(package: &'static str, what: &[&str], saying: &str) -> anyhow::Result<()> {
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if built.contains(&package) {
        return Ok(());
    }
    let _step = Step::start(saying);
    let mut cargo = workspace::cargo("build");
    command::read(cargo.args(["--release", "--target", ARM_TARGET, "-p", package]).args(what))?;
    built.push(package);
    Ok(())
}

fn program(name: &str) -> PathBuf {
    workspace::target().join(ARM_TARGET).join("release").join(name)
}

fn flat(elf: &Path, image: &Path) -> anyhow::Result<PathBuf> {
    let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let flattened = flatten::flatten(&bytes).with_context(|| format!("cannot flatten {}", elf.display()))?;
    if std::fs::read(image).is_ok_and(|old| old == flattened) {
        return Ok(image.to_path_buf());
    }
    workspace::write(image, &flattened)?;
    Ok(image.to_path_buf())
}
