//! apt-get with a configuration of our own, so that the machine's own stays as it is.
//!
//! The machine already knows an archive of its distribution. Its entries are read from /etc/apt and written again under
//! `target/apt` with other suites or another architecture, so no host name stands anywhere in this project and no file of
//! the machine is touched. Keys, proxies and certificates remain the machine's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::progress::Step;
use crate::{command, workspace};

mod sources;

use sources::Source;

/// The distribution that runs here.
pub(crate) struct Release {
    /// `debian`, `ubuntu`, ...
    pub(crate) id: String,
    /// `bookworm`, `trixie`, ...
    pub(crate) codename: String,
}

/// What /etc/os-release says; `None` where it says too little.
pub(crate) fn release() -> Option<Release> {
    parse_release(&std::fs::read_to_string("/etc/os-release").ok()?)
}

fn parse_release(text: &str) -> Option<Release> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    Some(Release { id: field("ID")?, codename: field("VERSION_CODENAME")? })
}

/// Whose packages are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose<'a> {
    /// Packages to install on this machine; with the suite of backports or without.
    Host { backports: bool },
    /// Packages of this Debian architecture, to unpack only.
    Foreign(&'a str),
}

/// One configuration of our own.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Writes the configuration; nothing is fetched yet.
    pub(crate) fn configure(purpose: Purpose<'_>) -> anyhow::Result<Self> {
        let Some(release) = release() else {
            bail!("this system does not say which distribution it is: do by hand what apt-get would");
        };
        if !command::exists("apt-get") {
            bail!("there is no apt-get on this {}: do by hand what it would", release.id);
        }
        let machines = machine_sources()?;
        let Some(name) = sources::name_of_release(&machines, &release.codename) else {
            bail!("no package source for {} in /etc/apt: add one and try again", release.codename);
        };
        let mut entries = sources::for_release(&machines, name);
        if purpose == (Purpose::Host { backports: true }) {
            let base = entries.iter().find(|source| source.has_suite(name));
            let backports = base.map(|base| base.with_suite(&format!("{}-backports", release.codename)));
            entries.extend(backports);
        }
        let folder = workspace::folder(&format!("apt/{}", purpose.folder()))?;
        let text: String = entries.iter().map(Source::to_string).collect();
        workspace::write(&folder.join("parts/bulkhead.sources"), text.as_bytes())?;
        Ok(Self { options: options(&folder, purpose)? })
    }

    /// Reads the package lists anew.
    pub(crate) fn update(&self) -> anyhow::Result<()> {
        let _step = Step::start("reading the package lists");
        let mut update = self.command("apt-get");
        update.args(["--error-on=any", "-qq", "update"]);
        fetch(&mut update, "the package lists")
    }

    /// `apt-get` or `apt-cache` with this configuration.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option.as_str()]));
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The version that would be installed, if any is known.
    pub(crate) fn candidate(&self, package: &str) -> anyhow::Result<Option<String>> {
        Ok(candidate(&command::read(self.command("apt-cache").args(["policy", package]))?))
    }
}

/// Runs a command that uses the network, twice if need be; then says so in one line.
pub(crate) fn fetch(command: &mut Command, what: &str) -> anyhow::Result<()> {
    if command::read(command).is_ok() {
        return Ok(());
    }
    let Err(error) = command::read(command) else { return Ok(()) };
    let text = error.to_string();
    let reason =
        text.lines().find(|line| line.starts_with("E: ")).or_else(|| text.lines().next()).unwrap_or_default();
    bail!("cannot get {what}: check the network and try again ({})", reason.trim_start_matches("E: "));
}

impl Purpose<'_> {
    fn folder(&self) -> &str {
        match self {
            Self::Host { .. } => "host",
            Self::Foreign(architecture) => architecture,
        }
    }
}

fn options(folder: &Path, purpose: Purpose<'_>) -> anyhow::Result<Vec<String>> {
    let at = |name: &str| folder.join(name).display().to_string();
    for name in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot create {}", at(name)))?;
    }
    let mut options = vec![
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        format!("Dir::Etc::sourceparts={}", at("parts")),
        format!("Dir::State::lists={}", at("lists")),
        "Acquire::Languages=none".to_owned(),
        // The folder is the user's; apt's own unprivileged account need not be able to write there.
        "APT::Sandbox::User=root".to_owned(),
    ];
    if let Purpose::Foreign(architecture) = purpose {
        workspace::write(&folder.join("status"), b"")?;
        options.extend([
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
        ]);
    }
    Ok(options)
}

fn machine_sources() -> anyhow::Result<Vec<Source>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        let mut parts: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(sources::parse_list(&text)),
            Some("sources") => sources.extend(sources::parse_stanzas(&text)),
            _ => {}
        }
    }
    Ok(sources)
}

fn candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_with_and_without_quotes() {
        let release = parse_release("NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=\"debian\"\n").unwrap();
        assert_eq!((release.id.as_str(), release.codename.as_str()), ("debian", "bookworm"));
        assert!(parse_release("ID=arch\n").is_none());
    }

    #[test]
    fn a_candidate_is_found_or_known_to_be_none() {
        let policy = "qemu-system-arm:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
        assert_eq!(candidate(policy).as_deref(), Some("1:7.2+dfsg-7"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }

    #[test]
    fn a_failed_fetch_is_one_line_that_says_what_to_do() {
        let mut broken = Command::new("sh");
        broken.args(["-c", "echo 'E: Failed to fetch it' >&2; exit 100"]);
        let error = fetch(&mut broken, "the package lists").unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot get the package lists: check the network and try again (Failed to fetch it)"
        );
    }
}
