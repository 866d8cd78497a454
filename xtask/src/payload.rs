//! Guest kernels and programs from Debian: `debian:` names become files under target/payload.
//!
//! What was fetched once is kept with its package's name and checksum, and used again without asking the network: remove
//! target/payload to get newer ones. Nothing is installed; packages are only unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, bail};
use bulkhead::config::Architecture;
use sha2::{Digest, Sha256};

use crate::apt::{self, Apt, Purpose};
use crate::progress::{self, Step};
use crate::workspace::Scratch;
use crate::{command, initramfs, workspace};

/// What a `debian:` name stands for.
struct Payload {
    name: &'static str,
    /// Debian's package for Debian's name of the architecture; for kernels, the one that depends on the newest.
    package: fn(&str) -> String,
    /// The file inside, as tar knows it.
    inside: &'static str,
    /// What is made of the file.
    make: fn(Vec<u8>) -> anyhow::Result<Vec<u8>>,
    /// Debian's name of the architecture, where it is not the system's own: a PC also runs what has 32 bits.
    instead: Option<&'static str>,
}

const KERNEL: &str = "./boot/vmlinuz-*";
const BUSYBOX: &str = "./bin/busybox";

const PAYLOADS: [Payload; 6] = [
    Payload {
        name: "linux-cloud",
        package: |debian| format!("linux-image-cloud-{debian}"),
        inside: KERNEL,
        make: Ok,
        instead: None,
    },
    Payload {
        name: "linux-rt",
        package: |debian| format!("linux-image-rt-{debian}"),
        inside: KERNEL,
        make: Ok,
        instead: None,
    },
    Payload {
        name: "linux",
        package: |debian| format!("linux-image-{debian}"),
        inside: KERNEL,
        make: Ok,
        instead: None,
    },
    Payload {
        name: "linux-i386",
        package: |_| "linux-image-686-pae".to_owned(),
        inside: KERNEL,
        make: Ok,
        instead: Some("i386"),
    },
    Payload {
        name: "busybox-initrd",
        package: |_| "busybox-static".to_owned(),
        inside: BUSYBOX,
        make: |busybox| initramfs::build(&busybox),
        instead: None,
    },
    Payload {
        name: "busybox-initrd-i386",
        package: |_| "busybox-static".to_owned(),
        inside: BUSYBOX,
        make: |busybox| initramfs::build(&busybox),
        instead: Some("i386"),
    },
];

impl Payload {
    /// Debian's name of the architecture that it is for.
    fn debian(&self, architecture: Architecture) -> &'static str {
        self.instead.unwrap_or(match architecture {
            Architecture::Aarch64 => "arm64",
            Architecture::X86_64 => "amd64",
        })
    }

    /// Whether a machine of that architecture can run it.
    fn is_for(&self, architecture: Architecture) -> bool {
        self.instead.is_none() || architecture == Architecture::X86_64
    }
}

/// The names of what exists for an architecture.
pub(crate) fn names(architecture: Architecture) -> Vec<&'static str> {
    let known = PAYLOADS.iter().filter(|payload| payload.is_for(architecture));
    known.map(|payload| payload.name).collect()
}

/// Debian's architectures whose package lists this run has read. Also keeps two threads from fetching the same.
static FETCHING: Mutex<Vec<&str>> = Mutex::new(Vec::new());

/// The file that a `debian:` name stands for, fetched if it is not there yet.
pub(crate) fn resolve(name: &str, architecture: Architecture) -> anyhow::Result<PathBuf> {
    let short = name.strip_prefix("debian:").unwrap_or(name);
    let mut payloads = PAYLOADS.iter().filter(|payload| payload.is_for(architecture));
    let Some(payload) = payloads.find(|payload| payload.name == short) else {
        let known = names(architecture).join(", debian:");
        bail!("no payload for {architecture} is called `debian:{short}`: choose one of debian:{known}");
    };
    let debian = payload.debian(architecture);
    let folder = workspace::folder(&format!("payload/{debian}"))?;
    let mut fresh = FETCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let archive = match cached(&folder, short) {
        Some(archive) => archive,
        None => download(&folder, &(payload.package)(debian), short, debian, &mut fresh)?,
    };
    let file = folder.join(format!("{short}.img"));
    let made_of = folder.join(format!("{short}.made-of"));
    let source = made_of_text(&archive, payload)?;
    if !file.is_file()
        || std::fs::read_to_string(&made_of).is_ok_and(|text| text != source)
        || !made_of.is_file()
    {
        let content = (payload.make)(extract(&archive, payload.inside)?)?;
        workspace::write(&file, &content)?;
        workspace::write(&made_of, source.as_bytes())?;
        progress::say(&describe(short, &archive)?);
    }
    Ok(file)
}

/// Everything that was fetched, one line each: name, package with version, checksum.
pub(crate) fn describe_all(architecture: Architecture) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for payload in PAYLOADS.iter().filter(|payload| payload.is_for(architecture)) {
        let folder = workspace::folder(&format!("payload/{}", payload.debian(architecture)))?;
        if let Some(archive) = cached(&folder, payload.name) {
            lines.push(describe(payload.name, &archive)?);
        }
    }
    Ok(lines)
}

/// The package that an earlier run fetched for this name.
fn cached(folder: &Path, name: &str) -> Option<PathBuf> {
    let package = std::fs::read_to_string(folder.join(format!("{name}.package"))).ok()?;
    let archive = folder.join(package.trim());
    archive.is_file().then_some(archive)
}

fn download(
    folder: &Path,
    package: &str,
    name: &str,
    debian: &'static str,
    fresh: &mut Vec<&'static str>,
) -> anyhow::Result<PathBuf> {
    let distribution = apt::release().map_or_else(|| "unknown".to_owned(), |release| release.id);
    if distribution != "debian" {
        bail!(
            "`debian:{name}` is got from Debian's archive, but this system is {distribution}: give files of your own in system.toml"
        );
    }
    let apt = Apt::configure(Purpose::Foreign(debian))?;
    if !fresh.contains(&debian) {
        if let Err(error) = apt.update() {
            // One of the archives may be out of step with itself for hours. What did arrive is verified all the same.
            if apt.candidate(package)?.is_none() {
                return Err(error);
            }
            progress::say(&format!("{error:#}: going on with the lists that are there"));
        }
        fresh.push(debian);
    }
    let package = real_package(&apt, package)?;
    let _step = Step::start(format!("fetching {package} for {debian}"));
    let uris = command::read(apt.command("apt-get").args(["download", "--print-uris", &package]))?;
    let Some(file) = file_name(&uris) else { bail!("the archive has no {package} for {debian}") };
    let mut get = apt.command("apt-get");
    get.current_dir(folder).args(["download", &package]);
    apt::fetch(&mut get, &package)?;
    workspace::write(&folder.join(format!("{name}.package")), file.as_bytes())?;
    Ok(folder.join(file))
}

/// The kernel that a metapackage depends on; any other package is itself.
fn real_package(apt: &Apt, package: &str) -> anyhow::Result<String> {
    let depends = command::read(apt.command("apt-cache").args(["depends", package]))
        .with_context(|| format!("the archive has no {package}"))?;
    Ok(kernel_behind(&depends).unwrap_or(package).to_owned())
}

fn kernel_behind(depends: &str) -> Option<&str> {
    let names =
        depends.lines().filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-"))
}

/// The second word of `'URI' FILE SIZE HASH`.
fn file_name(uris: &str) -> Option<&str> {
    let line = uris.lines().find(|line| line.starts_with('\''))?;
    let file = line.split_whitespace().nth(1)?;
    (!file.contains('/')).then_some(file)
}

/// One file out of a package, without unpacking the rest: where it is found, tar and with it the unpacking ends.
fn extract(archive: &Path, inside: &str) -> anyhow::Result<Vec<u8>> {
    ["dpkg-deb", "tar"].into_iter().try_for_each(command::require)?;
    let _step =
        Step::start(format!("unpacking {}", archive.file_name().unwrap_or_default().to_string_lossy()));
    let folder = Scratch::new("payload")?;
    let mut unpack = Command::new("sh");
    unpack.args([
        "-c",
        r#"dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --occurrence=1 --wildcards "$3""#,
        "sh",
    ]);
    command::read(unpack.arg(archive).arg(folder.path()).arg(inside))?;
    let inner = folder.path().join(Path::new(inside).parent().expect("a file lies in a folder"));
    let mut files = std::fs::read_dir(&inner)?.filter_map(|entry| Some(entry.ok()?.path()));
    let Some(file) = files.next() else { bail!("{} holds no {inside}", archive.display()) };
    Ok(std::fs::read(file)?)
}

/// What the made file depends on: the package, and for the initial RAM disk also what we put in.
fn made_of_text(archive: &Path, payload: &Payload) -> anyhow::Result<String> {
    let recipe = if payload.inside == BUSYBOX { initramfs::recipe() } else { String::new() };
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name}\n{}\n", hex(&Sha256::digest(recipe.as_bytes()))))
}

fn describe(name: &str, archive: &Path) -> anyhow::Result<String> {
    let package = archive.file_stem().unwrap_or_default().to_string_lossy().replace("%3a", ":");
    let digest = Sha256::digest(std::fs::read(archive)?);
    Ok(format!("debian:{name} is {package}, SHA-256 {}", hex(&digest)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_a_metapackage_is_found() {
        let depends =
            "linux-image-cloud-arm64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-cloud-arm64\n";
        assert_eq!(kernel_behind(depends), Some("linux-image-6.1.0-56-cloud-arm64"));
        assert_eq!(kernel_behind("busybox-static\n  Conflicts: busybox\n"), None);
    }

    #[test]
    fn the_file_name_comes_from_the_second_word() {
        let uris = "'http://mirror.example/b.deb' busybox-static_1%3a1.35.0-4_arm64.deb 912 SHA256:00\n";
        assert_eq!(file_name(uris), Some("busybox-static_1%3a1.35.0-4_arm64.deb"));
        assert_eq!(file_name("'x' ../../escape 1 h\n"), None);
        assert_eq!(file_name(""), None);
    }

    #[test]
    fn what_has_32_bits_is_for_pcs_only() {
        assert!(names(Architecture::X86_64).contains(&"linux-i386"));
        assert!(!names(Architecture::Aarch64).contains(&"linux-i386"));
        assert_eq!(PAYLOADS[3].debian(Architecture::X86_64), "i386");
        assert_eq!((PAYLOADS[3].package)("amd64"), "linux-image-686-pae");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = resolve("debian:windows", Architecture::Aarch64).unwrap_err().to_string();
        assert!(error.contains("debian:linux-cloud") && error.contains("debian:busybox-initrd"), "{error}");
    }
}
