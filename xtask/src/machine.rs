//! The emulated machines that Bulkhead boots on here: names, memory, and what an emulator is told.
//!
//! Both serial line and monitor are kept apart from the terminal's keys: the emulator passes every byte on as it is.

use std::ops::Range;
use std::path::Path;

use anyhow::bail;
use bulkhead::config::Architecture;
use bulkhead::config::check::MAX_CPUS;

pub(crate) mod bochs;
mod kvm;
pub(crate) mod qemu;

/// A machine with its name in the tool's contract.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Machine {
    /// QEMU's `virt` with EL2 and GICv3.
    QemuVirt,
    /// The same with an SMMUv3.
    QemuVirtSmmu,
    /// QEMU's `q35` with AMD's SVM and nested paging.
    QemuQ35Svm,
    /// The same with this computer's own processor, nested.
    QemuQ35Kvm,
    /// Bochs' PC with Intel's VMX.
    BochsVmx,
}

/// Every machine, by name.
const MACHINES: [(&str, Machine); 5] = [
    ("qemu-virt", Machine::QemuVirt),
    ("qemu-virt-smmu", Machine::QemuVirtSmmu),
    ("qemu-q35-svm", Machine::QemuQ35Svm),
    ("qemu-q35-kvm", Machine::QemuQ35Kvm),
    ("bochs-vmx", Machine::BochsVmx),
];

/// Machines that the contract names and that boot once there are drivers for what they add.
const LATER: [&str; 2] = ["qemu-q35-svm-vtd", "qemu-q35-svm-amdvi"];

impl Machine {
    /// The machine for an architecture where nobody asks for another: nested where this computer offers that.
    pub(crate) fn default_for(architecture: Architecture, clock: Clock) -> Self {
        match architecture {
            Architecture::Aarch64 => Self::QemuVirt,
            Architecture::X86_64 if clock != Clock::Instructions && kvm::is_nested() => Self::QemuQ35Kvm,
            Architecture::X86_64 => Self::QemuQ35Svm,
        }
    }

    /// Its processors' architecture.
    pub(crate) fn architecture(self) -> Architecture {
        match self {
            Self::QemuVirt | Self::QemuVirtSmmu => Architecture::Aarch64,
            Self::QemuQ35Svm | Self::QemuQ35Kvm | Self::BochsVmx => Architecture::X86_64,
        }
    }

    /// The processors to choose from, the default first; none where there is only one.
    pub(crate) fn models(self) -> &'static [CpuModel] {
        match self {
            Self::QemuVirt | Self::QemuVirtSmmu => &[CpuModel::CortexA57, CpuModel::Max],
            Self::BochsVmx => &[CpuModel::SkylakeX, CpuModel::SandyBridge],
            Self::QemuQ35Svm | Self::QemuQ35Kvm => &[],
        }
    }

    /// How many processors it can have: what Bulkhead uses, or what the emulator has timers for.
    fn most_cpus(self) -> u32 {
        if self == Self::BochsVmx { 8 } else { MAX_CPUS }
    }

    /// Its name in the contract.
    pub(crate) fn name(self) -> &'static str {
        MACHINES.iter().find(|(_, machine)| *machine == self).map_or("", |(name, _)| name)
    }
}

impl std::str::FromStr for Machine {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        if let Some((_, machine)) = MACHINES.iter().find(|(known, _)| *known == name) {
            return Ok(*machine);
        }
        if LATER.contains(&name) {
            bail!("machine {name} comes with the IOMMU drivers");
        }
        let names = MACHINES.map(|(name, _)| name).join(", ");
        bail!("no machine is called {name}: choose one of {names}")
    }
}

/// A processor model: of an Arm machine one without and one with the virtualisation host extensions, of a PC with VMX one with
/// and one without a virtual APIC. Such a pair takes both paths of everything that has two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum CpuModel {
    /// ARMv8.0: no VHE. The default, as it takes the path with fewer features.
    #[default]
    CortexA57,
    /// Everything that the emulator knows, VHE and SVE among it.
    Max,
    /// The CPU itself serves the local APIC and delivers its interrupts.
    SkylakeX,
    /// Interrupts are injected, second stages have no pages of 1 GiB.
    SandyBridge,
}

const MODELS: [(&str, CpuModel); 4] = [
    ("cortex-a57", CpuModel::CortexA57),
    ("max", CpuModel::Max),
    ("skylake-x", CpuModel::SkylakeX),
    ("sandy-bridge", CpuModel::SandyBridge),
];

impl CpuModel {
    /// The name on every command line.
    pub(crate) fn name(self) -> &'static str {
        MODELS.iter().find(|(_, model)| *model == self).map_or("", |(name, _)| name)
    }
}

impl std::str::FromStr for CpuModel {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        if let Some((_, model)) = MODELS.iter().find(|(known, _)| *known == name) {
            return Ok(*model);
        }
        bail!("no processor is called {name}: choose one of {}", MODELS.map(|(name, _)| name).join(", "));
    }
}

/// How the emulator's clock runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clock {
    /// With the host's time, kept as the emulator does it best.
    Host,
    /// With the host's time, and no instruction is counted for it: QEMU cannot do that where a guest has data breakpoints.
    HostUncounted,
    /// One nanosecond for each instruction: every run is the same.
    Instructions,
}

/// A machine, dressed.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Which one.
    pub(crate) machine: Machine,
    /// Its processors' model; `None`: the machine's own choice.
    pub(crate) cpu: Option<CpuModel>,
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
const VIRT_RAM: u64 = 0x4000_0000;
/// Below it a PC's firmware and devices are mixed with RAM.
const PC_RAM: u64 = 1 << 20;
/// A PC's RAM goes on here behind the devices.
const PC_HIGH_RAM: u64 = 4 << 30;

impl Settings {
    /// Whether a system for this architecture boots on the machine.
    pub(crate) fn check_boots(&self, architecture: Architecture) -> anyhow::Result<()> {
        if self.machine.architecture() == architecture {
            return Ok(());
        }
        let fit = MACHINES.iter().filter(|(_, machine)| machine.architecture() == architecture);
        let names: Vec<_> = fit.map(|(name, _)| *name).collect();
        bail!(
            "machine {} does not boot a system for {architecture}: choose {}",
            self.machine.name(),
            names.join(" or ")
        )
    }

    /// Whether these things exist together.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let name = self.machine.name();
        if let Some(cpu) = self.cpu {
            let offered = self.machine.models();
            if offered.is_empty() {
                bail!("machine {name} has one processor model: leave out `cpu`");
            }
            if !offered.contains(&cpu) {
                let names: Vec<_> = offered.iter().map(|model| model.name()).collect();
                bail!("machine {name} has no processor {}: choose {}", cpu.name(), names.join(" or "));
            }
        }
        if self.cpus > self.machine.most_cpus() {
            bail!("machine {name} has at most {} CPUs: {} are too many", self.machine.most_cpus(), self.cpus);
        }
        if self.clock == Clock::Instructions && self.machine == Machine::QemuQ35Kvm {
            bail!("machine {name} cannot count instructions: choose qemu-q35-svm or leave out `icount`");
        }
        if self.machine == Machine::BochsVmx && !self.extra.is_empty() {
            bail!("machine {name} takes no `emulator-args`: they are QEMU's");
        }
        Ok(())
    }

    /// The physical RAM banks as the machine will show them; one may be empty.
    pub(crate) fn banks(&self) -> [Range<u64>; 2] {
        if self.machine.architecture() == Architecture::Aarch64 {
            return [VIRT_RAM..VIRT_RAM.saturating_add(self.ram_bytes), 0..0];
        }
        let low = self.pc_low_ram();
        let high = PC_HIGH_RAM..PC_HIGH_RAM.saturating_add(self.ram_bytes.saturating_sub(low));
        [PC_RAM.min(low)..low, high]
    }

    /// The parts of them that are taken at boot, as far as is known beforehand.
    pub(crate) fn used(&self, archive_bytes: u64) -> [Range<u64>; 2] {
        if self.machine.architecture() == Architecture::Aarch64 {
            // hw/arm/boot.c: the kernel at 2 MiB; the initrd at half of RAM, at most 128 MiB in; the FDT behind it.
            let initrd = VIRT_RAM + (self.ram_bytes / 2).min(128 << 20);
            let end = (initrd + archive_bytes).next_multiple_of(2 << 20) + (2 << 20);
            return [VIRT_RAM..VIRT_RAM + 0x0040_0000, initrd..end];
        }
        // The hypervisor is linked to 1 MiB; loaders put the archive below the end of low RAM, ACPI's tables above it.
        let low = self.pc_low_ram();
        let archive = low.saturating_sub(archive_bytes + (2 << 20));
        [0..16 << 20, archive..low]
    }

    /// A PC's RAM below its devices: the whole, or 2 GiB if there is more than fits (hw/i386/pc_q35.c).
    fn pc_low_ram(&self) -> u64 {
        if self.ram_bytes < 0xb000_0000 { self.ram_bytes } else { 2 << 30 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn settings(machine: Machine) -> Settings {
        Settings {
            machine,
            cpu: None,
            cpus: 4,
            ram_bytes: 1 << 30,
            clock: Clock::Host,
            extra: vec!["-device".to_owned(), "edu".to_owned()],
        }
    }

    #[test]
    fn machines_of_later_releases_are_known_but_refused() {
        let error = "qemu-q35-svm-vtd".parse::<Machine>().unwrap_err().to_string();
        assert_eq!(error, "machine qemu-q35-svm-vtd comes with the IOMMU drivers");
        assert!("pdp11".parse::<Machine>().unwrap_err().to_string().contains("choose"));
    }

    #[test]
    fn a_machine_is_found_by_the_name_that_it_gives() {
        for (name, machine) in MACHINES {
            assert_eq!(name.parse::<Machine>().unwrap(), machine);
            assert_eq!(machine.name(), name);
        }
    }

    #[test]
    fn a_run_that_counts_instructions_is_never_nested() {
        let chosen = Machine::default_for(Architecture::X86_64, Clock::Instructions);
        assert_eq!(chosen, Machine::QemuQ35Svm);
        assert_eq!(Machine::default_for(Architecture::Aarch64, Clock::Host), Machine::QemuVirt);
    }

    #[test]
    fn what_a_machine_does_not_have_is_refused() {
        let refused = |settings: Settings| settings.check().unwrap_err().to_string();
        let plain = |machine| Settings { extra: Vec::new(), ..settings(machine) };
        let cpu = Some(CpuModel::Max);
        assert!(refused(Settings { cpu, ..plain(Machine::QemuQ35Svm) }).contains("leave out `cpu`"));
        let other = refused(Settings { cpu, ..plain(Machine::BochsVmx) });
        assert_eq!(other, "machine bochs-vmx has no processor max: choose skylake-x or sandy-bridge");
        let many = refused(Settings { cpus: 9, ..plain(Machine::BochsVmx) });
        assert_eq!(many, "machine bochs-vmx has at most 8 CPUs: 9 are too many");
        let clock = Clock::Instructions;
        assert!(refused(Settings { clock, ..plain(Machine::QemuQ35Kvm) }).contains("cannot count"));
        assert!(refused(settings(Machine::BochsVmx)).contains("emulator-args"));
        let other = plain(Machine::BochsVmx).check_boots(Architecture::Aarch64).unwrap_err().to_string();
        assert_eq!(
            other,
            "machine bochs-vmx does not boot a system for aarch64: choose qemu-virt or qemu-virt-smmu"
        );
        for machine in MACHINES.map(|(_, machine)| machine) {
            plain(machine).check().unwrap();
            plain(machine).check_boots(machine.architecture()).unwrap();
        }
    }

    #[test]
    fn what_the_emulator_puts_into_ram_lies_inside_it() {
        for machine in MACHINES.map(|(_, machine)| machine) {
            let settings = settings(machine);
            let banks = settings.banks();
            let (start, end) = (banks[0].start, banks[0].end);
            for used in settings.used(100 << 20) {
                assert!(used.start < used.end && used.end <= end && start < used.end);
            }
        }
    }

    #[test]
    fn a_large_pc_has_ram_on_both_sides_of_its_devices() {
        let settings = Settings { ram_bytes: 6 << 30, ..settings(Machine::QemuQ35Svm) };
        assert_eq!(settings.banks(), [1 << 20..2 << 30, 4 << 30..8 << 30]);
    }
}
