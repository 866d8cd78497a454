//! QEMU's command line for each machine.

use std::process::Command;

use bulkhead::config::Architecture;

use super::{Boot, Clock, Machine, Settings};
use crate::command;

/// The program that emulates an architecture.
pub(crate) fn program(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Aarch64 => "qemu-system-aarch64",
        Architecture::X86_64 => "qemu-system-x86_64",
    }
}

/// QEMU's SVM, without what QEMU gets wrong (MWAIT with extensions raises #GP there) and without what the model has and
/// the emulator has not, of which it would complain.
const SVM_CPU: &str =
    "EPYC,+svm,+npt,+vgif,-monitor,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";
/// Its random numbers come from the host: no two runs would be the same.
const NO_RANDOM: &str = ",-rdrand,-rdseed";

/// Timers fire in the thread of the CPU, at the host's pace. Elsewhere one that fires while a guest is entered or left may be lost:
/// QEMU 10.0.2 changes the interrupts that wait for a CPU in VMRUN and at each exit without its lock. On a busy computer
/// one boot in forty stood still, with an interrupt in the local APIC that the CPU never heard of.
const TIMERS_IN_STEP: &str = "shift=auto";

/// What a guest of Bulkhead finds, for comparison: no device that Bulkhead does not model.
const GUESTS_Q35: &str = "q35,hpet=on,sata=off,smbus=off,i8042=off";

/// The emulator's command line.
pub(crate) fn command(settings: &Settings, boot: &Boot<'_>) -> Command {
    let mut command = contained(program(settings.machine.architecture()));
    match settings.machine.architecture() {
        Architecture::Aarch64 => virt(&mut command, settings, boot),
        Architecture::X86_64 => q35(&mut command, settings, boot),
    }
    command.args(["-smp", &settings.cpus.to_string(), "-m", &format!("{}M", settings.ram_bytes >> 20)]);
    command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
    if settings.clock == Clock::Instructions {
        command.args(["-icount", "shift=0,sleep=off", "-seed", "7"]);
        command.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
    } else if settings.clock == Clock::Host && settings.machine == Machine::QemuQ35Svm {
        command.args(["-icount", TIMERS_IN_STEP]);
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
    command.args(&settings.extra);
    command
}

fn virt(command: &mut Command, settings: &Settings, boot: &Boot<'_>) {
    let mut machine = match boot {
        Boot::Bulkhead { .. } => "virt,virtualization=on,gic-version=3".to_owned(),
        Boot::Native { .. } => "virt,virtualization=off,gic-version=3".to_owned(),
    };
    if settings.machine == Machine::QemuVirtSmmu {
        machine.push_str(",iommu=smmuv3");
    }
    command.args(["-M", &machine, "-cpu", settings.cpu.unwrap_or_default().name()]);
}

fn q35(command: &mut Command, settings: &Settings, boot: &Boot<'_>) {
    let machine = match boot {
        Boot::Bulkhead { .. } => "q35",
        Boot::Native { .. } => GUESTS_Q35,
    };
    if settings.machine == Machine::QemuQ35Kvm {
        command.args(["-accel", "kvm", "-machine", machine, "-cpu", "host"]);
    } else {
        let random = if settings.clock == Clock::Instructions { NO_RANDOM } else { "" };
        command.args(["-accel", "tcg", "-machine", machine, "-cpu", &format!("{SVM_CPU}{random}")]);
    }
    match boot {
        // A machine that resets has lost its hypervisor: it must not come up again as if nothing had been. The device ends
        // the emulator with a status of the writer's choice, so it is there only where untrusted code reaches no port.
        Boot::Bulkhead { .. } => {
            command.args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        }
        Boot::Native { .. } => command.arg("-nodefaults"),
    };
}

/// An emulator must not outlive this tool, even when the tool is killed.
pub(super) fn contained(program: &str) -> Command {
    if !command::exists("setpriv") || !command::exists(program) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::settings;
    use super::*;

    fn words(settings: &Settings, boot: &Boot<'_>) -> String {
        command::line(&command(settings, boot))
    }

    fn bulkhead() -> Boot<'static> {
        Boot::Bulkhead { hypervisor: Path::new("/b.img"), archive: Path::new("/s.archive") }
    }

    fn native(cmdline: &str) -> Boot<'_> {
        Boot::Native { kernel: Path::new("k"), initrd: None, cmdline }
    }

    #[test]
    fn bulkhead_boots_with_el2_and_a_native_kernel_without() {
        let line = words(&settings(Machine::QemuVirt), &bulkhead());
        assert!(
            line.contains("virt,virtualization=on,gic-version=3 -cpu cortex-a57 -smp 4 -m 1024M"),
            "{line}"
        );
        assert!(line.ends_with("-kernel /b.img -initrd /s.archive -device edu"), "{line}");
        let line = words(&settings(Machine::QemuVirt), &native("a b"));
        assert!(line.contains("virtualization=off") && line.contains("-append 'a b'"), "{line}");
    }

    #[test]
    fn the_clock_of_instructions_makes_a_run_repeatable() {
        let of = |machine| Settings { clock: Clock::Instructions, ..settings(machine) };
        let line = words(&of(Machine::QemuVirtSmmu), &native(""));
        assert!(
            line.contains("iommu=smmuv3") && line.contains("-icount shift=0,sleep=off -seed 7"),
            "{line}"
        );
        let line = words(&of(Machine::QemuQ35Svm), &native(""));
        assert!(line.contains("-xsavec,-rdrand,-rdseed") && line.contains("-seed 7"), "{line}");
    }

    #[test]
    fn a_pc_has_svm_by_emulation_and_its_own_processor_by_kvm() {
        let line = words(&settings(Machine::QemuQ35Svm), &bulkhead());
        assert!(line.contains("-accel tcg -machine q35 -cpu EPYC,+svm,+npt,+vgif,-monitor,"), "{line}");
        assert!(line.contains("-icount shift=auto"), "{line}");
        let line = words(&settings(Machine::QemuQ35Kvm), &native(""));
        assert!(
            line.contains(
                "-accel kvm -machine q35,hpet=on,sata=off,smbus=off,i8042=off -cpu host -nodefaults"
            ),
            "{line}"
        );
        assert!(
            !line.contains("isa-debug-exit") && !line.contains("-no-reboot"),
            "a guest alone could end the emulator: {line}"
        );
    }
}
