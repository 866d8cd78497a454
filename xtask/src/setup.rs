//! What this machine needs to build and boot Bulkhead: found, or installed where we may, or asked for in one line.

use std::process::Command;

use anyhow::bail;

use crate::apt::{self, Apt, Purpose};
use crate::progress::Step;
use crate::{command, workspace};

/// The oldest emulator whose machines have everything that the tests look for.
const OLDEST_QEMU: (u32, u32) = (8, 0);
/// The target that hypervisor and test guests are built for.
pub(crate) const ARM_TARGET: &str = "aarch64-unknown-none-softfloat";

/// What is needed beyond the bare-metal compiler.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Formatter and linter.
    Checks,
    /// The emulator.
    Emulator,
}

/// `cargo xtask setup`: everything, with a line for each thing.
pub(crate) fn run() -> anyhow::Result<()> {
    compiler()?;
    println!("Rust for {ARM_TARGET}: ready");
    checks()?;
    println!("rustfmt and clippy: ready");
    linker()?;
    println!("cc: ready");
    println!("qemu-system-aarch64 {}: ready", emulator()?);
    Ok(())
}

/// The same without a word where nothing is missing.
pub(crate) fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    compiler()?;
    for need in needs {
        match need {
            Need::Checks => checks()?,
            Need::Emulator => drop(emulator()?),
        }
    }
    Ok(())
}

/// Without its target, the compiler only says that it cannot find `core` (E0463).
fn compiler() -> anyhow::Result<()> {
    let installed = || -> anyhow::Result<bool> {
        let mut ask = Command::new("rustc");
        ask.current_dir(workspace::root()).args(["--print", "target-libdir", "--target", ARM_TARGET]);
        Ok(std::path::Path::new(command::read(&mut ask)?.trim()).is_dir())
    };
    if installed()? {
        return Ok(());
    }
    toolchain()?;
    if !installed()? {
        bail!(
            "Rust has no target {ARM_TARGET}: run `rustup target add {ARM_TARGET}` in {}",
            workspace::root().display()
        );
    }
    Ok(())
}

fn checks() -> anyhow::Result<()> {
    let answers = |tool: &str| command::read(workspace::cargo(tool).arg("--version")).is_ok();
    if answers("fmt") && answers("clippy") {
        return Ok(());
    }
    toolchain()
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

fn linker() -> anyhow::Result<()> {
    if command::exists("cc") {
        return Ok(());
    }
    let apt = Apt::configure(Purpose::Host { backports: false })?;
    apt.update()?;
    install(&apt, &["gcc", "libc6-dev"], None)
}

/// The emulator's version, after installing it where it is missing or too old.
fn emulator() -> anyhow::Result<String> {
    if let Some(version) = installed_qemu().filter(|version| is_recent(version)) {
        return Ok(version);
    }
    let apt = Apt::configure(Purpose::Host { backports: false })?;
    apt.update()?;
    let packages = ["qemu-system-arm", "ca-certificates"];
    if apt.candidate("qemu-system-arm")?.is_some_and(|version| is_recent(&version)) {
        install(&apt, &packages, None)?;
    } else {
        install_backport(&packages)?;
    }
    match installed_qemu() {
        Some(version) if is_recent(&version) => Ok(version),
        _ => bail!(
            "qemu-system-aarch64 {}.{} or newer is needed: install it by hand",
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
            "this system's qemu-system-arm is older than {}.{}: install a newer one",
            OLDEST_QEMU.0,
            OLDEST_QEMU.1
        );
    };
    let apt = Apt::configure(Purpose::Host { backports: true })?;
    apt.update()?;
    install(&apt, packages, Some(&format!("{}-backports", release.codename)))
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

fn installed_qemu() -> Option<String> {
    let text = command::read(Command::new("qemu-system-aarch64").arg("--version")).ok()?;
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
