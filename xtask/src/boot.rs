//! From a folder with a system.toml to a running emulator: the way that `run`, `scenario`, `test` and `bench` share.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use bulkhead::config::{Architecture, System};
use bulkhead::memory::place::place;

use crate::console::Emulator;
use crate::frames::LOG;
use crate::machine::{Boot, Machine, Settings, bochs, qemu};
use crate::system::Loaded;
use crate::workspace::Scratch;
use crate::{build, pack, setup, system, workspace};

const ARCHIVE: &str = "system.archive";

/// What stands between the machine and the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Under {
    /// Bulkhead.
    Bulkhead,
    /// Nothing: the first VM's kernel boots on the machine itself, for comparison.
    Nothing,
}

/// A system whose files are ready to boot; they vanish with this.
pub(crate) struct Prepared {
    pub(crate) loaded: Loaded,
    under: Under,
    hypervisor: PathBuf,
    files: Scratch,
}

/// The folder that IMAGE on the command line means: a path, or a name under images/.
pub(crate) fn image_folder(image: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(image);
    if path.join("system.toml").is_file() {
        return Ok(path.to_path_buf());
    }
    let named = workspace::root().join("images").join(image);
    if named.join("system.toml").is_file() {
        return Ok(named);
    }
    bail!("no system.toml in {image} or in images/{image}: {}", known_images());
}

fn known_images() -> String {
    let entries = std::fs::read_dir(workspace::root().join("images")).into_iter().flatten();
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut names: Vec<String> = folders
        .filter(|folder| folder.join("system.toml").is_file())
        .filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    format!("give a folder or one of {}", names.join(", "))
}

/// Checks, builds and packs what is to be booted.
pub(crate) fn prepare(folder: &Path, under: Under) -> anyhow::Result<Prepared> {
    let loaded = system::load(folder).map_err(|error| anyhow!("{error}"))?;
    let files = Scratch::new("bulkhead")?;
    let hypervisor = match under {
        Under::Bulkhead => build::hypervisor(loaded.system.arch)?,
        Under::Nothing => PathBuf::new(),
    };
    let prepared = Prepared { loaded, under, hypervisor, files };
    match under {
        Under::Bulkhead => prepared.write(ARCHIVE, &pack::archive_bytes(&prepared.loaded))?,
        Under::Nothing => prepared.write_native()?,
    }
    Ok(prepared)
}

impl Prepared {
    /// Boots it on a machine, after making sure that the machine has room for it.
    pub(crate) fn start(&self, settings: &Settings) -> anyhow::Result<Emulator> {
        settings.check()?;
        settings.check_boots(self.architecture())?;
        setup::emulator(settings.machine)?;
        match self.under {
            Under::Bulkhead => {
                let archive_bytes = std::fs::metadata(self.path(ARCHIVE))?.len();
                check_fits(&self.loaded.system, archive_bytes, settings)?;
                let archive = self.path(ARCHIVE);
                let boot = Boot::Bulkhead { hypervisor: &self.hypervisor, archive: &archive };
                self.launch(settings, &boot, LOG)
            }
            Under::Nothing => {
                let (kernel, initrd) = (self.path("kernel"), self.path("initrd"));
                let initrd = initrd.is_file().then_some(initrd.as_path());
                let vm = &self.loaded.system.vms[0];
                let boot = Boot::Native { kernel: &kernel, initrd, cmdline: &vm.kernel.cmdline };
                self.launch(settings, &boot, &vm.name)
            }
        }
    }

    fn launch(&self, settings: &Settings, boot: &Boot<'_>, first: &str) -> anyhow::Result<Emulator> {
        if settings.machine != Machine::BochsVmx {
            return Emulator::start(qemu::command(settings, boot), first);
        }
        let folder = self.path("bochs");
        // A second start of the same system begins with an empty folder.
        let _ = std::fs::remove_dir_all(&folder);
        bochs::start(settings, boot, &folder, first)
    }

    /// What its processors must be.
    pub(crate) fn architecture(&self) -> Architecture {
        self.loaded.system.arch
    }

    /// Changes the packed archive, to see whether it is noticed.
    pub(crate) fn damage(&self, damage: fn(&mut Vec<u8>)) -> anyhow::Result<()> {
        let mut archive = std::fs::read(self.path(ARCHIVE))?;
        damage(&mut archive);
        self.write(ARCHIVE, &archive)
    }

    /// The VMs' names, in the order of system.toml.
    pub(crate) fn vm_names(&self) -> Vec<String> {
        self.loaded.system.vms.iter().map(|vm| vm.name.clone()).collect()
    }

    fn write_native(&self) -> anyhow::Result<()> {
        let vm = self.loaded.system.vms.first().context("a system has a VM")?;
        self.write("kernel", self.file(vm.kernel.file)?)?;
        match vm.kernel.initrd {
            Some(initrd) => self.write("initrd", self.file(initrd)?),
            None => Ok(()),
        }
    }

    fn file(&self, id: bulkhead::config::FileId) -> anyhow::Result<&[u8]> {
        let file = usize::try_from(id.0).ok().and_then(|index| self.loaded.files.get(index));
        Ok(&file.context("the system names a file that was not loaded")?.1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        workspace::write(&self.path(name), bytes)
    }
}

/// RAM that does not fit is better said here than by a hypervisor at boot.
fn check_fits(system: &System, archive_bytes: u64, settings: &Settings) -> anyhow::Result<()> {
    let wanted: Vec<u64> = system.vms.iter().map(|vm| vm.ram_bytes).collect();
    match place(&wanted, &settings.banks(), &settings.used(archive_bytes)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("VM `{}`: {error}", system.vms[error.vm].name),
    }
}

#[cfg(test)]
mod tests {
    use bulkhead::config::{FileId, Kernel, KernelFormat, OnFault, Unmapped, Vm};

    use super::*;
    use crate::machine::Clock;

    #[test]
    fn ram_that_the_machine_does_not_have_is_refused_by_its_vm() {
        let kernel = Kernel {
            format: KernelFormat::Arm64Image,
            file: FileId(0),
            initrd: None,
            cmdline: String::new(),
        };
        let vm = |name: &str, ram_bytes| Vm {
            name: name.to_owned(),
            vcpus: 1,
            cpus: Vec::new(),
            ram_bytes,
            kernel: kernel.clone(),
            on_fault: OnFault::Stop,
            unmapped: Unmapped::Stop,
            hypervisor_leaf: false,
            privileges: Vec::new(),
        };
        let settings = Settings {
            machine: Machine::QemuVirt,
            cpu: None,
            cpus: 1,
            ram_bytes: 1 << 30,
            clock: Clock::Host,
            extra: Vec::new(),
        };
        let system = |second| System {
            arch: Architecture::Aarch64,
            vms: vec![vm("one", 256 << 20), vm("two", second)],
        };
        check_fits(&system(256 << 20), 1 << 20, &settings).unwrap();
        let line = check_fits(&system(1 << 30), 1 << 20, &settings).unwrap_err().to_string();
        assert!(line.starts_with("VM `two`: 1 GiB of RAM do not fit"), "{line}");
        assert!(line.ends_with("or the machine more"), "{line}");
    }
}
