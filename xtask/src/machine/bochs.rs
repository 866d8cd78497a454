//! Bochs: a PC with VMX, booted from a rescue disk that GRUB's own tool makes, spoken to by a socket.
//!
//! Bochs ends with status 1 whatever happened: why it ended is in its log. Nothing but the given folder is written to, and
//! all of it vanishes with that folder.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::qemu::contained;
use super::{Boot, CpuModel, Settings};
use crate::console::{Emulator, Ending};
use crate::{command, grub};

/// Its program: `bochs` itself asks what to do.
pub(crate) const PROGRAM: &str = "bochs-bin";
/// Makes the disk.
pub(crate) const MAKE_DISK: &str = "grub-mkrescue";
/// Firmware that Bochs starts, from the packages bochsbios and vgabios.
pub(crate) const FIRMWARE: [&str; 2] =
    ["/usr/share/bochs/BIOS-bochs-latest", "/usr/share/bochs/VGABIOS-lgpl-latest"];

/// The names that Bochs has for the models.
const fn model(cpu: Option<CpuModel>) -> &'static str {
    match cpu {
        Some(CpuModel::SandyBridge) => "corei7_sandy_bridge_2600k",
        _ => "corei7_skylake_x",
    }
}

/// Emulated instructions per second: the time stamp counter counts them.
pub(crate) const INSTRUCTIONS_PER_SECOND: f64 = 5e7;
const CONFIGURATION: &str = "bochsrc";
const LOG: &str = "bochs.log";
const DISK: &str = "system.iso";
/// Bochs' debugger waits for a command before it starts: continue.
const DEBUGGER: &str = "debugger";
/// Modules of GRUB that the disk needs; all others would only make it slower.
const MODULES: &str = "multiboot multiboot2 linux normal iso9660 biosdisk serial terminal";

/// Starts Bochs; bytes before any frame belong to `first`.
pub(crate) fn start(
    settings: &Settings,
    boot: &Boot<'_>,
    folder: &Path,
    first: &str,
) -> anyhow::Result<Emulator> {
    make_disk(boot, folder)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen for Bochs' serial line")?;
    let port = listener.local_addr()?.port();
    std::fs::write(folder.join(CONFIGURATION), configuration(settings, port))?;
    std::fs::write(folder.join(DEBUGGER), "c\n")?;
    let mut command = contained(PROGRAM);
    command.args(["-q", "-f", CONFIGURATION, "-rc", DEBUGGER]);
    // Its screen is drawn for a terminal of this kind, and nobody looks.
    command.env("TERM", "xterm").current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let log = folder.join(LOG);
    Emulator::start_on_socket(command, &listener, first, Box::new(move || ending(&log)))
}

/// The lines that make the machine (bochsrc(5)). Files are named from where Bochs runs: the way there may have blanks.
fn configuration(settings: &Settings, port: u16) -> String {
    let (cpus, megabytes) = (settings.cpus, settings.ram_bytes >> 20);
    let (model, [bios, vga]) = (model(settings.cpu), FIRMWARE);
    format!(
        "display_library: term\n\
         sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
         plugin_ctrl: unmapped=1\n\
         cpu: model={model}, count={cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         memory: guest={megabytes}, host={megabytes}\n\
         romimage: file={bios}\n\
         vgaromimage: file={vga}\n\
         pci: enabled=1, chipset=i440fx\n\
         boot: cdrom\n\
         ata0-master: type=cdrom, path={DISK}, status=inserted\n\
         com1: enabled=1, mode=socket-client, dev=localhost:{port}\n\
         clock: sync=none\n\
         panic: action=fatal\n\
         log: {LOG}\n"
    )
}

fn make_disk(boot: &Boot<'_>, folder: &Path) -> anyhow::Result<()> {
    let content = folder.join("disk");
    let put = |from: &Path, name: &str| {
        let to = content.join("boot").join(name);
        // The same file under another name, where the file system can do that.
        let linked = std::fs::hard_link(from, &to).or_else(|_| std::fs::copy(from, &to).map(drop));
        linked.with_context(|| format!("cannot put {} on the disk", from.display()))
    };
    std::fs::create_dir_all(content.join("boot/grub"))?;
    let commands = match boot {
        Boot::Bulkhead { hypervisor, archive } => {
            put(hypervisor, grub::HYPERVISOR)?;
            put(archive, grub::ARCHIVE)?;
            grub::boots_bulkhead()
        }
        Boot::Native { kernel, initrd, cmdline } => {
            put(kernel, "kernel")?;
            initrd.iter().try_for_each(|initrd| put(initrd, "initrd"))?;
            grub::boots_natively(&std::fs::read(kernel)?, initrd.is_some(), cmdline)
        }
    };
    std::fs::write(content.join("boot/grub/grub.cfg"), grub::at_once(&commands))?;
    let mut make = Command::new(MAKE_DISK);
    make.arg("-o").arg(folder.join(DISK));
    make.args([format!("--modules={MODULES}"), format!("--install-modules={MODULES}")]);
    make.args(["--locales=", "--fonts=", "--themes=", "--compress=no"]).arg(&content);
    command::read(&mut make).map(drop)
}

/// Why Bochs ended, by its log.
fn ending(log: &Path) -> Ending {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    judge(&text)
}

/// A machine that powers itself off is a panic to Bochs, as is everything else that ends it.
fn judge(log: &str) -> Ending {
    const GOOD: [&str; 2] = ["Shutdown port: shutdown requested", "ACPI control: soft power off"];
    let Some((_, reason)) = log.lines().find_map(|line| line.split_once(">>PANIC<<")) else {
        return Ending::bad("Bochs ended without a reason");
    };
    let reason = reason.trim();
    if GOOD.iter().any(|good| reason.contains(good)) {
        return Ending::good(format!("Bochs: {reason}"));
    }
    Ending::bad(format!("Bochs: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::super::Machine;
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn the_machine_is_what_was_asked_for() {
        let text = configuration(&settings(Machine::BochsVmx), 4711);
        for line in [
            "cpu: model=corei7_skylake_x, count=4, ips=50000000, reset_on_triple_fault=0",
            "memory: guest=1024, host=1024",
            "ata0-master: type=cdrom, path=system.iso, status=inserted",
            "com1: enabled=1, mode=socket-client, dev=localhost:4711",
            "log: bochs.log",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn only_a_power_off_is_a_good_end() {
        let of = |reason: &str| judge(&format!("00i[      ] start\n01p[UNMAP ] >>PANIC<< {reason}\n"));
        assert!(of("Shutdown port: shutdown requested").is_good());
        assert!(of("ACPI control: soft power off").is_good());
        let crash = of("exception(): 3rd (14) exception with no resolution");
        assert!(!crash.is_good() && crash.to_string().contains("3rd (14)"), "{crash}");
        assert!(!judge("").is_good());
    }
}
