//! Where things lie: the checkout, and the one folder that everything built or fetched goes to.
//!
//! Nothing is ever written outside [`target`], but for packages that `setup` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::undo::Undo;

/// The checkout that this tool was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Cargo's build folder, absolute.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| PathBuf::from(folder)),
        None => root().join("target"),
    }
}

/// A folder under [`target`], created if need be.
pub(crate) fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let path = target().join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// A folder under [`target`] for what is needed for a while; it vanishes with this.
pub(crate) struct Scratch {
    path: PathBuf,
    _undo: Undo,
}

impl Scratch {
    /// An empty one in the folder `name`.
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let path = tempfile::tempdir_in(folder(name)?)?.keep();
        let gone = path.clone();
        let undo = Undo::later(move || {
            // What cannot be removed is in nobody's way but the disk's.
            let _ = std::fs::remove_dir_all(gone);
        });
        Ok(Self { path, _undo: undo })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A file is replaced in one step, so that neither an interrupted nor a second run sees half of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let folder = path.parent().expect("a file lies in a folder");
    std::fs::create_dir_all(folder).with_context(context)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    std::io::Write::write_all(&mut file, bytes).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

/// The Cargo that started this tool, working in the checkout and building into [`target`].
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // RUSTFLAGS in the environment would replace what the configuration says for bare metal.
    command.current_dir(root()).arg(subcommand).env("CARGO_TARGET_DIR", target()).env_remove("RUSTFLAGS");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_vanishes_with_what_is_in_it() {
        let scratch = Scratch::new("bulkhead").unwrap();
        let path = scratch.path().to_path_buf();
        write(&path.join("inner/file"), b"content").unwrap();
        assert!(path.join("inner/file").is_file());
        drop(scratch);
        assert!(!path.exists());
    }
}
