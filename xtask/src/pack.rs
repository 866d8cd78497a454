//! The bootable files of a system, for emulators and real machines.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use bulkhead::config::archive;
use bulkhead::config::{Architecture, Size};
use sha2::{Digest, Sha256};

use crate::grub;
use crate::system::{Loaded, summary};

const HYPERVISOR: &str = "bulkhead.img";
const ARCHIVE: &str = grub::ARCHIVE;
const SCRIPT: &str = "boot.scr.txt";
const MENU: &str = "grub.cfg";
const NOTE: &str = "README.md";

const UBOOT_NOTE: &str = "
Bulkhead is entered like an arm64 Linux Image, at EL2, with the archive as its initial RAM disk:
copy the files to a partition that U-Boot reads and run the script, or give them to an emulator as
`-kernel bulkhead.img -initrd system.archive`.
";
const GRUB_NOTE: &str = "
Bulkhead is entered by multiboot2, with the archive as its module: copy both files to /boot and add the entry of
grub.cfg to your own, or give them to an emulator as `-kernel bulkhead.elf -initrd system.archive`.
";

/// U-Boot's own variables name the device that the script was read from and the addresses that the board has for
/// kernel, RAM disk and device tree. The archive is used where it was loaded: `initrd_high` keeps it from being copied.
const UBOOT_SCRIPT: &str = "\
# Boots Bulkhead from the partition that this script was read from.
# Make the form that U-Boot runs with: mkimage -A arm64 -T script -d boot.scr.txt boot.scr
if test -z \"${distro_bootpart}\"; then setenv distro_bootpart 1; fi
if test -z \"${fdt_addr}\"; then setenv fdt_addr ${fdtcontroladdr}; fi
setenv initrd_high 0xffffffffffffffff
load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} ${prefix}bulkhead.img
load ${devtype} ${devnum}:${distro_bootpart} ${ramdisk_addr_r} ${prefix}system.archive
booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr}
";

/// The system as the archive that the hypervisor reads at boot.
pub(crate) fn archive_bytes(loaded: &Loaded) -> Vec<u8> {
    let files: Vec<_> =
        loaded.files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    archive::write(&loaded.system, &files)
}

/// Writes the bootable files into the folder `out` and prints the path of each.
pub(crate) fn pack(loaded: &Loaded, hypervisor: &Path, out: &Path) -> anyhow::Result<()> {
    let image = std::fs::read(hypervisor).with_context(|| format!("cannot read {}", hypervisor.display()))?;
    let archive = archive_bytes(loaded);
    let menu = grub::entry(&format!("Bulkhead: {}", loaded.name));
    let (hypervisor, loader) = match loaded.system.arch {
        Architecture::Aarch64 => (HYPERVISOR, (SCRIPT, UBOOT_SCRIPT)),
        Architecture::X86_64 => (grub::HYPERVISOR, (MENU, menu.as_str())),
    };
    let note = note(loaded, hypervisor, &image, &archive);
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let files: [(&str, &[u8]); 4] =
        [(hypervisor, &image), (ARCHIVE, &archive), (loader.0, loader.1.as_bytes()), (NOTE, note.as_bytes())];
    for (name, content) in files {
        let path = out.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn note(loaded: &Loaded, hypervisor: &str, image: &[u8], archive: &[u8]) -> String {
    let mut text = format!("# {}\n\n{}\n\n", loaded.name, summary(loaded));
    text.push_str("| file | bytes | SHA-256 |\n|---|---|---|\n");
    let inside = loaded.files.iter().map(|(name, content)| (format!("in it: {name}"), content.as_slice()));
    let rows = [(hypervisor.to_owned(), image), (ARCHIVE.to_owned(), archive)].into_iter().chain(inside);
    for (name, content) in rows {
        writeln!(text, "| {name} | {} | {:x} |", content.len(), Sha256::digest(content))
            .expect("a String takes all");
    }
    text.push_str("\n| VM | vCPUs | CPUs | RAM | command line |\n|---|---|---|---|---|\n");
    for vm in &loaded.system.vms {
        let cpus: Vec<String> = vm.cpus.iter().map(u32::to_string).collect();
        let cpus = if cpus.is_empty() { "all".to_owned() } else { cpus.join(", ") };
        let (ram, cmdline) = (Size(vm.ram_bytes), vm.kernel.cmdline.replace('|', "\\|"));
        writeln!(text, "| {} | {} | {cpus} | {ram} | `{cmdline}` |", vm.name, vm.vcpus)
            .expect("a String takes all");
    }
    text.push_str(match loaded.system.arch {
        Architecture::Aarch64 => UBOOT_NOTE,
        Architecture::X86_64 => GRUB_NOTE,
    });
    text
}

#[cfg(test)]
mod tests {
    use bulkhead::config::archive::Archive;
    use bulkhead::config::{FileId, Kernel, KernelFormat, OnFault, System, Unmapped, Vm};

    use super::*;

    fn loaded() -> Loaded {
        let kernel = Kernel {
            format: KernelFormat::Flat { load: 0x4000_0000, entry: 0x4000_0000 },
            file: FileId(0),
            initrd: None,
            cmdline: "a|b".into(),
        };
        let vm = Vm {
            name: "one".into(),
            vcpus: 1,
            cpus: vec![],
            ram_bytes: 4 << 20,
            kernel,
            on_fault: OnFault::Stop,
            unmapped: Unmapped::Stop,
            hypervisor_leaf: false,
            privileges: vec![],
        };
        Loaded {
            system: System { arch: Architecture::Aarch64, vms: vec![vm] },
            files: vec![("probe.bin".into(), b"probe".to_vec())],
            name: "probe".into(),
        }
    }

    #[test]
    fn the_archive_holds_the_system_and_its_files() {
        let bytes = archive_bytes(&loaded());
        let archive = Archive::parse(&bytes).unwrap();
        assert_eq!(*archive.system(), loaded().system);
        assert_eq!(archive.file(FileId(0)), Some(&b"probe"[..]));
    }

    #[test]
    fn packing_writes_everything_that_a_machine_needs() {
        let folder = tempfile::tempdir().unwrap();
        let hypervisor = folder.path().join("built.img");
        std::fs::write(&hypervisor, b"hypervisor").unwrap();
        let out = folder.path().join("new/out");
        pack(&loaded(), &hypervisor, &out).unwrap();
        assert_eq!(std::fs::read(out.join(HYPERVISOR)).unwrap(), b"hypervisor");
        assert_eq!(std::fs::read(out.join(ARCHIVE)).unwrap(), archive_bytes(&loaded()));
        assert_eq!(std::fs::read_to_string(out.join(SCRIPT)).unwrap(), UBOOT_SCRIPT);
        let note = std::fs::read_to_string(out.join(NOTE)).unwrap();
        let digest = format!("{:x}", Sha256::digest(b"probe"));
        assert!(note.contains(&format!("| in it: probe.bin | 5 | {digest} |")), "{note}");
        assert!(note.contains("| one | 1 | all | 4 MiB | `a\\|b` |"), "{note}");
    }

    #[test]
    fn a_pc_gets_an_elf_program_and_an_entry_for_its_menu() {
        let folder = tempfile::tempdir().unwrap();
        let hypervisor = folder.path().join("built");
        std::fs::write(&hypervisor, b"hypervisor").unwrap();
        let mut loaded = loaded();
        loaded.system.arch = Architecture::X86_64;
        pack(&loaded, &hypervisor, folder.path()).unwrap();
        assert_eq!(std::fs::read(folder.path().join("bulkhead.elf")).unwrap(), b"hypervisor");
        let menu = std::fs::read_to_string(folder.path().join(MENU)).unwrap();
        assert!(menu.starts_with("menuentry \"Bulkhead: probe\" {"), "{menu}");
        let note = std::fs::read_to_string(folder.path().join(NOTE)).unwrap();
        assert!(note.contains("| bulkhead.elf | 10 |") && note.contains("by multiboot2"), "{note}");
    }

    #[test]
    fn the_script_loads_the_files_by_their_names() {
        assert!(UBOOT_SCRIPT.contains(HYPERVISOR) && UBOOT_SCRIPT.contains(ARCHIVE));
    }

    #[test]
    fn a_missing_hypervisor_is_named() {
        let error = pack(&loaded(), Path::new("no-such.img"), Path::new("out")).unwrap_err().to_string();
        assert_eq!(error, "cannot read no-such.img");
    }
}
