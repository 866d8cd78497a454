//! The emulated machines that Bulkhead boots on here: names, and the emulator's command line for each.
//!
//! Both serial line and monitor are kept apart from the terminal's keys: the emulator passes every byte on as it is.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::bail;

use crate::command;

/// A machine with its name in the tool's contract.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Machine {
    /// QEMU's `virt` with EL2 and GICv3.
    QemuVirt,
    /// The same with an SMMUv3.
    QemuVirtSmmu,
}

/// Presets that the contract names and that boot once the x86_64 port is there.
const LATER: [&str; 4] = ["qemu-q35-svm", "qemu-q35-svm-vtd", "qemu-q35-svm-amdvi", "bochs-vmx"];

impl std::str::FromStr for Machine {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "qemu-virt" => Ok(Self::QemuVirt),
            "qemu-virt-smmu" => Ok(Self::QemuVirtSmmu),
            _ if LATER.contains(&name) => bail!("machine {name} comes with the x86_64 port"),
            _ => bail!("no machine is called {name}: choose qemu-virt or qemu-virt-smmu"),
        }
    }
}

/// The processor model: one without and one with the virtualisation host extensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum CpuModel {
    /// ARMv8.0: no VHE. The default, as it takes the path with fewer features.
    #[default]
    CortexA57,
    /// Everything that the emulator knows, VHE and SVE among it.
    Max,
}

impl CpuModel {
    /// The name on every command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CortexA57 => "cortex-a57",
            Self::Max => "max",
        }
    }
}

impl std::str::FromStr for CpuModel {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "cortex-a57" => Ok(Self::CortexA57),
            "max" => Ok(Self::Max),
            _ => bail!("no processor is called {name}: choose cortex-a57 or max"),
        }
    }
}

/// How the emulator's clock runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clock {
    /// With the host's time.
    Host,
    /// One nanosecond for each instruction: every run is the same.
    Instructions,
}

/// A machine, dressed.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Which one.
    pub(crate) machine: Machine,
    /// Its processors' model.
    pub(crate) cpu: CpuModel,
    /// Its processors' number.
    pub(crate) cpus: u32,
    /// Its memory.
    pub(crate) ram_bytes: u64,
    /// Its clock.
    pub(crate) clock: Clock,
    /// Appended to the command line as they are.
    pub(crate) extra: Vec<String>,
}

/// What is booted on it.
pub(crate) enum Boot<'a> {
    /// Bulkhead with a system.
    Bulkhead { hypervisor: &'a Path, archive: &'a Path },
    /// A kernel alone, where Bulkhead's guest would run, for comparison.
    Native { kernel: &'a Path, initrd: Option<&'a Path>, cmdline: &'a str },
}

/// Where RAM starts on `virt`.
const RAM_START: u64 = 0x4000_0000;
/// What the emulator and the boot protocol put there before the hypervisor runs: the kernel at 2 MiB, the FDT at 128 MiB,
/// the archive behind it; the archive's own size comes on top.
const FIRST_USED: Range<u64> = RAM_START..RAM_START + 0x0040_0000;

impl Settings {
    /// The physical RAM bank as the machine's FDT will show it.
    pub(crate) fn bank(&self) -> Range<u64> {
        RAM_START..RAM_START.saturating_add(self.ram_bytes)
    }

    /// The parts of them that are taken at boot, as far as is known beforehand.
    pub(crate) fn used(&self, archive_bytes: u64) -> [Range<u64>; 2] {
        // hw/arm/boot.c: the initrd follows the kernel at half of RAM, at most 128 MiB in; the FDT follows the initrd.
        let initrd = RAM_START + (self.ram_bytes / 2).min(128 << 20);
        let end = (initrd + archive_bytes).next_multiple_of(2 << 20) + (2 << 20);
        [FIRST_USED, initrd..end]
    }

    /// The emulator's command line.
    pub(crate) fn command(&self, boot: &Boot<'_>) -> Command {
        let mut command = contained("qemu-system-aarch64");
        let mut machine = match boot {
            Boot::Bulkhead { .. } => "virt,virtualization=on,gic-version=3".to_owned(),
            Boot::Native { .. } => "virt,virtualization=off,gic-version=3".to_owned(),
        };
        if self.machine == Machine::QemuVirtSmmu {
            machine.push_str(",iommu=smmuv3");
        }
        command.args(["-M", &machine, "-cpu", self.cpu.name(), "-smp", &self.cpus.to_string()]);
        command.args(["-m", &format!("{}M", self.ram_bytes >> 20)]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
        if self.clock == Clock::Instructions {
            command.args(["-icount", "shift=0,sleep=off", "-seed", "7"]);
            command.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        }
        match boot {
            Boot::Bulkhead { hypervisor, archive } => {
                command.arg("-kernel").arg(hypervisor).arg("-initrd").arg(archive);
            }
            Boot::Native { kernel, initrd, cmdline } => {
                command.arg("-kernel").arg(kernel).args(["-append", cmdline]);
                command.args(initrd.iter().flat_map(|initrd| ["-initrd".as_ref(), initrd.as_os_str()]));
            }
        }
        command.args(&self.extra);
        command
    }
}

/// An emulator must not outlive this tool, even when the tool is killed.
fn contained(program: &str) -> Command {
    if !command::exists("setpriv") || !command::exists(program) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            machine: Machine::QemuVirt,
            cpu: CpuModel::default(),
            cpus: 4,
            ram_bytes: 1 << 30,
            clock: Clock::Host,
            extra: vec!["-device".to_owned(), "edu".to_owned()],
        }
    }

    fn words(command: &Command) -> String {
        command::line(command)
    }

    #[test]
    fn machines_of_the_next_port_are_known_but_refused() {
        let error = "bochs-vmx".parse::<Machine>().unwrap_err().to_string();
        assert_eq!(error, "machine bochs-vmx comes with the x86_64 port");
        assert!("pdp11".parse::<Machine>().unwrap_err().to_string().contains("choose"));
    }

    #[test]
    fn bulkhead_boots_with_el2_and_a_native_kernel_without() {
        let paths = (Path::new("/b.img"), Path::new("/s.archive"));
        let line = words(&settings().command(&Boot::Bulkhead { hypervisor: paths.0, archive: paths.1 }));
        assert!(
            line.contains("virt,virtualization=on,gic-version=3 -cpu cortex-a57 -smp 4 -m 1024M"),
            "{line}"
        );
        assert!(line.ends_with("-kernel /b.img -initrd /s.archive -device edu"), "{line}");
        let line =
            words(&settings().command(&Boot::Native { kernel: paths.0, initrd: None, cmdline: "a b" }));
        assert!(line.contains("virtualization=off") && line.contains("-append 'a b'"), "{line}");
    }

    #[test]
    fn the_clock_of_instructions_makes_a_run_repeatable() {
        let settings = Settings { clock: Clock::Instructions, machine: Machine::QemuVirtSmmu, ..settings() };
        let line =
            words(&settings.command(&Boot::Native { kernel: Path::new("k"), initrd: None, cmdline: "" }));
        assert!(
            line.contains("iommu=smmuv3") && line.contains("-icount shift=0,sleep=off -seed 7"),
            "{line}"
        );
    }

    #[test]
    fn what_the_emulator_puts_into_ram_lies_inside_it() {
        let settings = settings();
        let bank = settings.bank();
        for used in settings.used(100 << 20) {
            assert!(bank.start <= used.start && used.start < used.end && used.end <= bank.end);
        }
    }
}
