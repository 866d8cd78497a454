//! What this computer needs to build and boot Bulkhead: found, or installed where we may, or asked for in one line.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, bail};
use bulkhead::config::Architecture;

use crate::apt::{self, Apt, Purpose};
use crate::build::{ARCHITECTURES, target};
use crate::machine::{Machine, bochs, qemu};
use crate::progress::Step;
use crate::{command, workspace};

/// The oldest QEMU whose machines have everything that the tests look for.
const OLDEST_QEMU: (u32, u32) = (8, 0);
/// Bochs, the firmware that it starts, its text screen, and what makes the disk that it boots from.
const BOCHS_PACKAGES: [&str; 8] =
    ["bochs", "bochsbios", "vgabios", "bochs-term", "grub-pc-bin", "grub-common", "xorriso", "mtools"];
/// GRUB's modules for a PC's BIOS.
const GRUB_MODULES: &str = "/usr/lib/grub/i386-pc/multiboot2.mod";

/// A program that any release has in a version that will do.
struct Tool {
    program: &'static str,
    packages: &'static [&'static str],
}

/// Links programs for this computer; without it this tool could be built only elsewhere.
const LINKER: Tool = Tool { program: "cc", packages: &["gcc", "libc6-dev"] };
/// The house rules look at every file that git knows.
const GIT: Tool = Tool { program: "git", packages: &["git"] };

/// `cargo xtask setup`: everything, with a line for each thing.
pub(crate) fn run() -> anyhow::Result<()> {
    checks()?;
    println!("Rust for {}: ready", ARCHITECTURES.map(target).join(", "));
    println!("rustfmt, clippy and git: ready");
    ready(&LINKER)?;
    println!("cc: ready");
    for architecture in ARCHITECTURES {
        println!("{} {}: ready", qemu::program(architecture), newest_qemu(architecture)?);
    }
    ensure_bochs()?;
    println!("{} and {}: ready", bochs::PROGRAM, bochs::MAKE_DISK);
    Ok(())
}

/// What the lints of `cargo xtask ci` need, without a word where nothing is missing.
pub(crate) fn checks() -> anyhow::Result<()> {
    ready(&GIT)?;
    ARCHITECTURES.into_iter().try_for_each(compiler)?;
    let answers = |tool: &str| command::read(workspace::cargo(tool).arg("--version")).is_ok();
    if answers("fmt") && answers("clippy") {
        return Ok(());
    }
    toolchain()
}

/// Every emulator, likewise.
pub(crate) fn emulators() -> anyhow::Result<()> {
    [Machine::QemuVirt, Machine::QemuQ35Svm, Machine::BochsVmx].into_iter().try_for_each(emulator)
}

/// The emulator of one machine. A run looks once.
pub(crate) fn emulator(machine: Machine) -> anyhow::Result<()> {
    static FOUND: Mutex<Vec<Machine>> = Mutex::new(Vec::new());
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if found.contains(&machine) {
        return Ok(());
    }
    match machine {
        Machine::BochsVmx => ensure_bochs()?,
        _ => drop(newest_qemu(machine.architecture())?),
    }
    found.push(machine);
    Ok(())
}

/// The compiler for an architecture. Without its target, it only says that it cannot find `core` (E0463).
pub(crate) fn compiler(architecture: Architecture) -> anyhow::Result<()> {
    let target = target(architecture);
    let is_there = || -> anyhow::Result<bool> {
        let mut ask = Command::new("rustc");
        ask.current_dir(workspace::root()).args(["--print", "target-libdir", "--target", target]);
        Ok(Path::new(command::read(&mut ask)?.trim()).is_dir())
    };
    if is_there()? {
        return Ok(());
    }
    toolchain()?;
    if is_there()? {
        return Ok(());
    }
    bail!("Rust has no target {target}: run `rustup target add {target}` in {}", workspace::root().display())
}

/// Installs what rust-toolchain.toml names: the channel, its components and targets.
fn toolchain() -> anyhow::Result<()> {
    if !command::exists("rustup") {
        bail!(
            "rustup is missing: install it, or a Rust toolchain with everything that rust-toolchain.toml names"
        );
    }
    let _step = Step::start("installing the Rust toolchain that rust-toolchain.toml names");
    let mut install = Command::new("rustup");
    // Cargo runs us with its own toolchain in RUSTUP_TOOLCHAIN, which would win over the file.
    install.current_dir(workspace::root()).args(["toolchain", "install"]).env_remove("RUSTUP_TOOLCHAIN");
    apt::fetch(&mut install, "the Rust toolchain")
}

/// A program, installed where it is missing.
fn ready(tool: &Tool) -> anyhow::Result<()> {
    if command::exists(tool.program) {
        return Ok(());
    }
    install(&sources(tool.packages, Purpose::Host { backports: false })?, tool.packages, None)
}

/// QEMU's version, after installing it where it is missing or too old.
fn newest_qemu(architecture: Architecture) -> anyhow::Result<String> {
    if let Some(version) = installed_qemu(architecture).filter(|version| is_recent(version)) {
        return Ok(version);
    }
    let package = match architecture {
        Architecture::Aarch64 => "qemu-system-arm",
        Architecture::X86_64 => "qemu-system-x86",
    };
    let packages = [package, "ca-certificates"];
    let apt = sources(&packages, Purpose::Host { backports: false })?;
    if apt.candidate(package)?.is_some_and(|version| is_recent(&version)) {
        install(&apt, &packages, None)?;
    } else {
        install_backport(&packages)?;
    }
    match installed_qemu(architecture) {
        Some(version) if is_recent(&version) => Ok(version),
        _ => bail!(
            "{} {}.{} or newer is needed: install it by hand",
            qemu::program(architecture),
            OLDEST_QEMU.0,
            OLDEST_QEMU.1
        ),
    }
}

/// The release's own emulator is too old: its backports have a newer one.
fn install_backport(packages: &[&str]) -> anyhow::Result<()> {
    let release = apt::release().filter(|release| release.id == "debian");
    let Some(release) = release else {
        bail!(
            "this system's {} is older than {}.{}: install a newer one",
            packages[0],
            OLDEST_QEMU.0,
            OLDEST_QEMU.1
        );
    };
    let apt = sources(packages, Purpose::Host { backports: true })?;
    install(&apt, packages, Some(&format!("{}-backports", release.codename)))
}

/// Bochs and what makes its disk, installed where any of it is missing. Every release's version will do.
fn ensure_bochs() -> anyhow::Result<()> {
    let Some(missing) = missing_for_bochs() else { return Ok(()) };
    if std::env::consts::ARCH != "x86_64" {
        bail!("{missing} is missing: machine bochs-vmx needs an x86_64 host");
    }
    install(&sources(&BOCHS_PACKAGES, Purpose::Host { backports: false })?, &BOCHS_PACKAGES, None)?;
    match missing_for_bochs() {
        None => Ok(()),
        Some(missing) => bail!("{missing} is still missing: install it by hand"),
    }
}

/// The first thing that Bochs needs and that is not there.
fn missing_for_bochs() -> Option<&'static str> {
    // xorriso and mtools are what grub-mkrescue calls; it says so only when it runs.
    let programs = [bochs::PROGRAM, bochs::MAKE_DISK, "xorriso", "mformat"];
    let files = [bochs::FIRMWARE[0], bochs::FIRMWARE[1], GRUB_MODULES];
    let program = programs.into_iter().find(|program| !command::exists(program));
    program.or_else(|| files.into_iter().find(|file| !Path::new(file).is_file()))
}

/// Where packages come from, with the lists read; who cannot have that is told what to install.
fn sources(packages: &[&str], purpose: Purpose<'_>) -> anyhow::Result<Apt> {
    let apt =
        Apt::configure(purpose).with_context(|| format!("{} must be installed", packages.join(", ")))?;
    apt.update()?;
    Ok(apt)
}

/// Installs packages whose lists have been read.
fn install(apt: &Apt, packages: &[&str], suite: Option<&str>) -> anyhow::Result<()> {
    let mut install = apt.command("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]);
    install.args(suite.iter().flat_map(|suite| ["-t", *suite])).args(packages);
    if !rustix::process::geteuid().is_root() {
        let mut update = apt.command("apt-get");
        update.arg("update");
        let (update, install) = (command::line(&update), command::line(&install));
        bail!("{} must be installed by root: run `sudo {update} && sudo {install}`", packages.join(", "));
    }
    let _step = Step::start(format!("installing {}", packages.join(", ")));
    apt::fetch(&mut install, &packages.join(", "))?;
    println!("installed {}", packages.join(", "));
    Ok(())
}

fn installed_qemu(architecture: Architecture) -> Option<String> {
    let text = command::read(Command::new(qemu::program(architecture)).arg("--version")).ok()?;
    Some(text.split("version ").nth(1)?.split_whitespace().next()?.to_owned())
}

/// Whether a version, as QEMU (`10.0.2`) or Debian (`1:7.2+dfsg-7`) writes it, is new enough.
fn is_recent(version: &str) -> bool {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers =
        upstream.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) >= OLDEST_QEMU
}

#[cfg(test)]
mod tests {
    use super::is_recent;

    #[test]
    fn versions_compare_as_numbers_in_either_spelling() {
        assert!(is_recent("10.0.2"));
        assert!(is_recent("1:8.0+dfsg-1"));
        assert!(!is_recent("1:7.2+dfsg-7+deb12u12"));
        assert!(!is_recent("7.2.0"));
        assert!(!is_recent(""));
    }
}
