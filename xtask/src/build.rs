//! The bare-metal programs: built by Cargo, then made what a boot loader takes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use bulkhead::config::Architecture;

use crate::progress::Step;
use crate::{command, elf, flatten, setup, workspace};

/// Both architectures.
pub(crate) const ARCHITECTURES: [Architecture; 2] = [Architecture::Aarch64, Architecture::X86_64];

/// What this run has built already; also keeps two threads from building at once.
static BUILT: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// The target that hypervisor and test guests of an architecture are built for.
pub(crate) fn target(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Aarch64 => "aarch64-unknown-none-softfloat",
        Architecture::X86_64 => "x86_64-unknown-none",
    }
}

/// The hypervisor's package, and its program's name.
pub(crate) fn hypervisor_package(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Aarch64 => "bulkhead-aarch64",
        Architecture::X86_64 => "bulkhead-x86_64",
    }
}

/// The package of the test guests.
pub(crate) fn guests_package(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Aarch64 => "bulkhead-test-guests",
        Architecture::X86_64 => "bulkhead-test-guests-x86",
    }
}

/// The hypervisor as its loaders take it: a flat Image for Arm, an ELF64 program for a PC.
pub(crate) fn hypervisor(architecture: Architecture) -> anyhow::Result<PathBuf> {
    let package = hypervisor_package(architecture);
    build(architecture, package, &["--bin", package], "building the hypervisor")?;
    let (file, make): (&str, Make) = match architecture {
        Architecture::Aarch64 => ("bulkhead.img", |bytes| Ok(flatten::flatten(bytes)?)),
        Architecture::X86_64 => ("bulkhead.elf", |bytes| Ok(elf::trim(bytes)?)),
    };
    made(&hypervisor_elf(architecture), &workspace::target().join("bulkhead").join(file), make)
}

/// Where Cargo leaves the hypervisor with its symbols.
pub(crate) fn hypervisor_elf(architecture: Architecture) -> PathBuf {
    program(architecture, hypervisor_package(architecture))
}

/// A test guest, of whichever architecture it is, as Bulkhead takes it: a flat Image or an ELF32 program. `NAME@0x80000` is an
/// Image whose header asks for that distance from the start of RAM.
pub(crate) fn guest(name: &str) -> anyhow::Result<PathBuf> {
    let name = name.strip_prefix("guest:").unwrap_or(name);
    if let Some((name, offset)) = name.split_once('@') {
        return moved(&guest(name)?, offset);
    }
    let mut known = Vec::new();
    for architecture in ARCHITECTURES {
        let names = guests(architecture)?;
        if names.iter().any(|guest| guest == name) {
            return make_guest(architecture, name);
        }
        known.extend(names);
    }
    bail!("no test guest is called `guest:{name}`: choose one of {}", known.join(", "))
}

fn make_guest(architecture: Architecture, name: &str) -> anyhow::Result<PathBuf> {
    build(architecture, guests_package(architecture), &["--bins"], "building the test guests")?;
    let (ending, make): (&str, Make) = match architecture {
        Architecture::Aarch64 => ("img", |bytes| Ok(flatten::flatten(bytes)?)),
        Architecture::X86_64 => ("elf", |bytes| Ok(elf::narrow(bytes)?)),
    };
    let file = workspace::target().join(format!("bulkhead/guests/{name}.{ending}"));
    made(&program(architecture, name), &file, make)
}

/// Where an Image's header says how far from a multiple of 2 MiB it wants to lie (Documentation/arch/arm64/booting).
const TEXT_OFFSET: std::ops::Range<usize> = 8..16;

/// The Image `image` with another load offset.
fn moved(image: &Path, offset: &str) -> anyhow::Result<PathBuf> {
    let digits = offset.strip_prefix("0x").unwrap_or(offset);
    let number = u64::from_str_radix(digits, 16)
        .with_context(|| format!("`@{offset}` is no offset: write it as `@0x80000`"))?;
    let mut bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    if let Some(field) = bytes.get_mut(TEXT_OFFSET) {
        field.copy_from_slice(&number.to_le_bytes());
    }
    let file = image.with_extension(format!("{offset}.img"));
    workspace::write(&file, &bytes)?;
    Ok(file)
}

/// The names of all test guests of an architecture: each is one file.
fn guests(architecture: Architecture) -> anyhow::Result<Vec<String>> {
    let folder = match architecture {
        Architecture::Aarch64 => "tests/guests/src/bin",
        Architecture::X86_64 => "tests/guests-x86/src/bin",
    };
    let folder = workspace::root().join(folder);
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

fn build(
    architecture: Architecture,
    package: &'static str,
    what: &[&str],
    saying: &str,
) -> anyhow::Result<()> {
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if built.contains(&package) {
        return Ok(());
    }
    setup::compiler(architecture)?;
    let _step = Step::start(format!("{saying} for {architecture}"));
    let mut cargo = workspace::cargo("build");
    command::read(cargo.args(["--release", "--target", target(architecture), "-p", package]).args(what))?;
    built.push(package);
    Ok(())
}

fn program(architecture: Architecture, name: &str) -> PathBuf {
    workspace::target().join(target(architecture)).join("release").join(name)
}

/// What is made of a program's bytes.
type Make = fn(&[u8]) -> anyhow::Result<Vec<u8>>;

fn made(program: &Path, file: &Path, make: Make) -> anyhow::Result<PathBuf> {
    let bytes = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let made = make(&bytes).with_context(|| format!("cannot use {}", program.display()))?;
    if !std::fs::read(file).is_ok_and(|old| old == made) {
        workspace::write(file, &made)?;
    }
    Ok(file.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_name_tells_its_architecture() {
        let [arm, pc] = ARCHITECTURES.map(|architecture| guests(architecture).unwrap());
        assert!(arm.contains(&"tap-gic".to_owned()) && pc.contains(&"tap-x86-modes".to_owned()));
        assert!(arm.iter().all(|name| !pc.contains(name)));
    }
}
