//! Whether a system can work: every rule that needs no machine to be checked against.
//!
//! Pure. xtask runs it and shows each [`Problem`] at its line of `system.toml`; the hypervisor runs it again over
//! the compiled form. It looks at nothing but what it is given: the content of a file, the RAM of a machine and
//! the CPUs that are really there are checked by who can see them.

use alloc::string::String;
use alloc::vec::Vec;

use bulkhead_vdev::{MAX_VCPUS, pc, virt};

use super::problem::{Field, Place, Problem, What};
use super::{Architecture, FileId, KernelFormat, System, Vm};

/// The most VMs in one system.
pub const MAX_VMS: usize = 32;
/// The longest name of a VM, in bytes.
pub const MAX_NAME: usize = 31;
/// The name of the console that carries Bulkhead's own log: no VM's.
pub const LOG_CONSOLE: &str = "log";
/// The most physical CPUs that Bulkhead drives.
pub const MAX_CPUS: u32 = 16;
/// The longest kernel command line, in bytes: what Linux keeps (`COMMAND_LINE_SIZE`).
pub const MAX_CMDLINE: usize = 2048;
/// A VM's RAM comes in pieces of this size, one second-level block of the translation tables.
pub const RAM_GRANULE: u64 = 2 << 20;
/// RAM that a guest's kernel and RAM disk must leave free: room for the device tree, which has a granule of its own, or on a PC
/// for all that is below 1 MiB.
pub const RAM_RESERVE: u64 = RAM_GRANULE;
/// Where a guest's physical address space ends.
pub const ADDRESS_SPACE_END: u64 = 1 << 40;

/// What the checks compare a system with.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Physical CPUs that a VM may name, from 0: the machine's, or [`MAX_CPUS`] while no machine is known.
    pub cpus: u32,
    /// The length of each file in bytes, by [`FileId`].
    pub file_bytes: &'a [u64],
}

/// Checks everything that can be checked without a machine.
///
/// # Errors
/// Every problem found, in the order of the system's description; at least one.
pub fn check(system: &System, limits: &Limits<'_>) -> Result<(), Vec<Problem>> {
    let mut found = Found(Vec::new());
    check_whole(system, &mut found);
    for (index, vm) in system.vms.iter().enumerate().take(MAX_VMS) {
        let mut report = |field, what| found.in_vm(index, vm, field, what);
        check_name(vm, &system.vms[..index], &mut report);
        check_cpus(vm, limits, &mut report);
        check_ram(system.arch, vm, &mut report);
        check_kernel(system.arch, vm, limits, &mut report);
        if vm.hypervisor_leaf && system.arch != Architecture::X86_64 {
            report(Field::HypervisorLeaf, What::NoCpuid(system.arch));
        }
    }
    if found.0.is_empty() { Ok(()) } else { Err(found.0) }
}

fn check_whole(system: &System, found: &mut Found) {
    if system.vms.is_empty() {
        found.in_system(Place::Vms, What::NoVm);
    }
    if system.vms.len() > MAX_VMS {
        found.in_system(Place::Vms, What::TooManyVms(system.vms.len()));
    }
}

fn check_name(vm: &Vm, earlier: &[Vm], report: &mut impl FnMut(Field, What)) {
    if vm.name.is_empty() {
        return report(Field::Name, What::NameEmpty);
    }
    if vm.name.len() > MAX_NAME {
        return report(Field::Name, What::NameTooLong(vm.name.len()));
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if let Some(bad) = vm.name.chars().find(|&c| !is_allowed(c)) {
        return report(Field::Name, What::NameCharacter(bad));
    }
    if vm.name == LOG_CONSOLE {
        return report(Field::Name, What::NameReserved);
    }
    if let Some(first) = earlier.iter().position(|other| other.name == vm.name) {
        report(Field::Name, What::NameTaken { first });
    }
}

fn check_cpus(vm: &Vm, limits: &Limits<'_>, report: &mut impl FnMut(Field, What)) {
    if vm.vcpus == 0 {
        report(Field::Vcpus, What::NoVcpu);
    }
    if usize::try_from(vm.vcpus).map_or(true, |vcpus| vcpus > MAX_VCPUS) {
        report(Field::Vcpus, What::TooManyVcpus(vm.vcpus));
    }
    let mut seen = 0_u64;
    for (at, &cpu) in vm.cpus.iter().enumerate() {
        // Only numbers below 64 have a bit; a larger one is refused as unknown, once for all.
        let bit = 1_u64.checked_shl(cpu).unwrap_or(0);
        if cpu >= limits.cpus {
            return report(Field::Cpu(at), What::NoSuchCpu { cpu, cpus: limits.cpus });
        }
        if seen & bit != 0 {
            return report(Field::Cpu(at), What::CpuTwice(cpu));
        }
        seen |= bit;
    }
}

fn check_ram(arch: Architecture, vm: &Vm, report: &mut impl FnMut(Field, What)) {
    let most = match arch {
        Architecture::Aarch64 => ADDRESS_SPACE_END - virt::RAM.0,
        Architecture::X86_64 => ADDRESS_SPACE_END - (pc::HIGH_RAM.0 - pc::HOLE.0),
    };
    if vm.ram_bytes == 0 {
        report(Field::Ram, What::NoRam);
    } else if vm.ram_bytes > most {
        report(Field::Ram, What::RamTooLarge { ram: vm.ram_bytes, most });
    } else if !vm.ram_bytes.is_multiple_of(RAM_GRANULE) {
        report(Field::Ram, What::RamUneven(vm.ram_bytes));
    }
}

fn check_kernel(arch: Architecture, vm: &Vm, limits: &Limits<'_>, report: &mut impl FnMut(Field, What)) {
    let kernel = &vm.kernel;
    if !kernel.format.is_for(arch) {
        report(Field::KernelFile, What::FormatForeign { format: kernel.format, arch });
    }
    check_cmdline(&kernel.cmdline, report);
    let file = file_bytes(kernel.file, Field::KernelFile, limits, report);
    let initrd = kernel.initrd.map(|id| file_bytes(id, Field::Initrd, limits, report));
    let (Some(file), Some(initrd)) = (file, initrd.unwrap_or(Some(0))) else { return };
    // Against RAM that is itself refused, every file would be too large.
    if vm.ram_bytes < RAM_GRANULE {
        return;
    }
    let needed = file.saturating_add(initrd).saturating_add(RAM_RESERVE);
    if needed > vm.ram_bytes {
        return report(Field::KernelFile, What::FilesExceedRam { ram: vm.ram_bytes, file, initrd });
    }
    if let KernelFormat::Flat { load, entry } = kernel.format {
        let ram = flat_ram(arch, vm.ram_bytes, load);
        check_flat(arch, ram, file, load, entry, report);
    }
}

fn check_cmdline(cmdline: &str, report: &mut impl FnMut(Field, What)) {
    // One byte is the terminating zero's.
    if cmdline.len() >= MAX_CMDLINE {
        report(Field::Cmdline, What::CmdlineTooLong(cmdline.len()));
    }
    if let Some(bad) = cmdline.chars().find(|c| c.is_control()) {
        report(Field::Cmdline, What::CmdlineCharacter(bad));
    }
}

/// The file's length; a file that is missing or empty is reported.
fn file_bytes(
    id: FileId,
    field: Field,
    limits: &Limits<'_>,
    report: &mut impl FnMut(Field, What),
) -> Option<u64> {
    let found = usize::try_from(id.0).ok().and_then(|index| limits.file_bytes.get(index)).copied();
    match found {
        None => report(field, What::NoSuchFile(id)),
        Some(0) => report(field, What::FileEmpty),
        Some(_) => return found,
    }
    None
}

/// The piece of RAM that a flat kernel which is loaded at `load` has to lie in: on a PC it is entered with addresses of 32
/// bits, and the first megabyte is a piece of its own.
fn flat_ram(arch: Architecture, ram_bytes: u64, load: u64) -> (u64, u64) {
    match arch {
        Architecture::Aarch64 => (virt::RAM.0, virt::RAM.0.saturating_add(ram_bytes)),
        Architecture::X86_64 if load < pc::LOW_RAM_END.0 => (0, pc::LOW_RAM_END.0.min(ram_bytes)),
        Architecture::X86_64 => (pc::FIRMWARE_RAM.0, pc::HOLE.0.min(ram_bytes)),
    }
}

fn check_flat(
    arch: Architecture,
    (start, end): (u64, u64),
    file: u64,
    load: u64,
    entry: u64,
    report: &mut impl FnMut(Field, What),
) {
    const PAGE: u64 = 4096;
    let instruction = match arch {
        Architecture::Aarch64 => 4,
        Architecture::X86_64 => 1,
    };
    let file_end = load.saturating_add(file);
    if load < start || file_end > end {
        report(Field::Load, What::FlatOutsideRam { load, file, start, end });
    } else if !load.is_multiple_of(PAGE) {
        report(Field::Load, What::LoadUneven(load));
    } else if entry < load || entry >= file_end {
        report(Field::Entry, What::EntryOutsideFile { entry, start: load, end: file_end });
    } else if !entry.is_multiple_of(instruction) {
        report(Field::Entry, What::EntryUneven(entry));
    }
}

struct Found(Vec<Problem>);

impl Found {
    fn in_system(&mut self, place: Place, what: What) {
        self.0.push(Problem { place, vm: String::new(), what });
    }

    fn in_vm(&mut self, index: usize, vm: &Vm, field: Field, what: What) {
        self.0.push(Problem { place: Place::Vm(index, field), vm: vm.name.clone(), what });
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec;
    use proptest::prelude::*;

    use super::super::tests::{any_system, linux, system};
    use super::super::{Kernel, Unmapped};
    use super::*;

    const FILES: Limits<'_> = Limits { cpus: 4, file_bytes: &[30 << 20, 1 << 20, 0, 4096] };

    fn lines(vms: Vec<Vm>) -> Vec<String> {
        let problems = check(&system(vms), &FILES).unwrap_err();
        problems.iter().map(ToString::to_string).collect()
    }

    fn line_of(vm: Vm) -> String {
        let lines = lines(vec![vm]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.concat()
    }

    fn named(name: &str) -> Vm {
        Vm { name: name.into(), ..linux() }
    }

    fn with_kernel(change: impl FnOnce(&mut Kernel)) -> Vm {
        let mut vm = linux();
        change(&mut vm.kernel);
        vm
    }

    fn flat(load: u64, entry: u64) -> Vm {
        with_kernel(|kernel| {
            kernel.file = FileId(3);
            kernel.format = KernelFormat::Flat { load, entry };
        })
    }

    #[test]
    fn a_sound_system_passes() {
        let second = Vm { name: "second_VM-2".into(), cpus: vec![3, 0], unmapped: Unmapped::Stop, ..linux() };
        assert_eq!(check(&system(vec![linux(), second]), &FILES), Ok(()));
        assert_eq!(check(&system(vec![flat(0x4000_0000, 0x4000_0ffc)]), &FILES), Ok(()));
    }

    #[test]
    fn a_system_without_vm_is_refused() {
        assert_eq!(lines(vec![]), ["the system has no VM; describe one in a [[vm]] table"]);
    }

    #[test]
    fn more_vms_than_can_be_are_refused() {
        let vms = (0..33).map(|index| named(&index.to_string())).collect();
        assert_eq!(lines(vms), ["33 VMs are more than 32; describe at most 32"]);
    }

    fn pc_lines(vm: Vm) -> Vec<String> {
        let system = System { arch: Architecture::X86_64, vms: vec![vm] };
        let problems = check(&system, &FILES).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_kernel_is_for_the_systems_architecture() {
        let on_pc = with_kernel(|kernel| kernel.format = KernelFormat::BzImage);
        assert_eq!(pc_lines(on_pc.clone()), [""; 0]);
        let line = "VM `linux`: an arm64 Image does not run on x86_64; use a kernel for x86_64";
        assert_eq!(pc_lines(linux()), [line]);
        let line = "VM `linux`: a bzImage does not run on aarch64; use a kernel for aarch64";
        assert_eq!(line_of(on_pc), line);
    }

    #[test]
    fn only_a_pc_has_a_hypervisor_leaf() {
        let leaf = Vm { hypervisor_leaf: true, ..linux() };
        let line = "VM `linux`: a CPU of aarch64 has no leaf that could tell of a hypervisor; leave it out";
        assert_eq!(line_of(leaf.clone()), line);
        let kernel = Kernel { format: KernelFormat::Pvh, ..leaf.kernel };
        assert_eq!(pc_lines(Vm { kernel, ..leaf }), [""; 0]);
    }

    #[test]
    fn a_flat_kernel_on_a_pc_lies_below_640_kib_or_behind_video_memory() {
        for at in [0x7000, 0x9_f000, 0x10_0000] {
            assert_eq!(pc_lines(flat(at, at + 1)), [""; 0], "{at:#x}");
        }
        let said = |load: u64| pc_lines(flat(load, load)).concat();
        assert!(said(0x9_f800).contains("do not lie inside the VM's RAM, 0x0 to 0xa0000"));
        assert!(said(0xa_0000).contains("do not lie inside the VM's RAM, 0xc0000 to 0x10000000"));
        let large = Vm { ram_bytes: 5 << 30, ..flat(4 << 30, 4 << 30) };
        assert!(pc_lines(large).concat().contains("do not lie inside the VM's RAM, 0xc0000 to 0xc0000000"));
    }

    #[test]
    fn names_that_cannot_be_a_console_are_refused() {
        assert_eq!(line_of(named("")), "VM number 1: the VM has no name; give it one: name = \"...\"");
        let line = line_of(named("a b"));
        assert_eq!(line, "VM `a b`: ' ' cannot stand in a name; use letters, digits, `-` and `_`");
        assert_eq!(line_of(named("log")), "VM `log`: the name `log` is Bulkhead's own; choose another name");
        assert!(line_of(named(&"x".repeat(32))).ends_with("the name has 32 bytes, more than 31; shorten it"));
        assert!(line_of(named("\u{1b}[2J")).starts_with("VM `\\u{1b}[2J`: '\\u{1b}' cannot stand"));
    }

    #[test]
    fn the_second_vm_of_a_name_is_refused() {
        let lines = lines(vec![named("one"), linux(), named("one")]);
        assert_eq!(lines, ["VM `one`: VM number 1 has the same name; choose another name"]);
    }

    #[test]
    fn vcpus_are_1_to_16() {
        let line = |vcpus| line_of(Vm { vcpus, ..linux() });
        assert_eq!(line(0), "VM `linux`: 0 vCPUs cannot run anything; give the VM 1 to 16");
        assert_eq!(line(17), "VM `linux`: 17 vCPUs are more than 16; give the VM 1 to 16");
        assert!(line(u32::MAX).contains("more than 16"));
        assert_eq!(check(&system(vec![Vm { vcpus: 16, ..linux() }]), &FILES), Ok(()));
    }

    #[test]
    fn each_physical_cpu_is_one_that_exists_and_listed_once() {
        let line = |cpus| line_of(Vm { cpus, ..linux() });
        assert_eq!(line(vec![0, 2, 0]), "VM `linux`: CPU 0 is listed twice; list it once");
        let unknown = "VM `linux`: CPU 4 is not one of the 4 possible CPUs; name CPUs from 0 to 3";
        assert_eq!(line(vec![4]), unknown);
        assert!(line(vec![u32::MAX, u32::MAX]).contains("CPU 4294967295 is not one"));
    }

    #[test]
    fn ram_is_whole_granules_inside_the_address_space() {
        let line = |ram_bytes| line_of(Vm { ram_bytes, ..linux() });
        assert_eq!(line(0), "VM `linux`: the VM has no RAM; give it at least 2 MiB");
        assert_eq!(
            line((65 << 20) - 1),
            "VM `linux`: 68157439 bytes of RAM is not a multiple of 2 MiB; write \"66 MiB\""
        );
        assert!(line(1 << 40).contains("1024 GiB of RAM is more than the 1023 GiB"));
        assert!(line(u64::MAX).contains("give it at most 1023 GiB"));
    }

    #[test]
    fn kernel_and_ram_disk_fit_into_ram() {
        assert_eq!(
            line_of(Vm { ram_bytes: 32 << 20, ..linux() }),
            "VM `linux`: 32 MiB of RAM cannot hold a kernel of 30 MiB, a RAM disk of 1 MiB and 2 MiB for the \
             machine's description; give it at least 34 MiB"
        );
        assert_eq!(check(&system(vec![Vm { ram_bytes: 34 << 20, ..linux() }]), &FILES), Ok(()));
    }

    #[test]
    fn files_are_there_and_not_empty() {
        let missing = line_of(with_kernel(|kernel| kernel.file = FileId(9)));
        assert!(missing.contains("file number 9 is not in the archive; pack the system again"));
        let empty = line_of(with_kernel(|kernel| kernel.initrd = Some(FileId(2))));
        assert_eq!(empty, "VM `linux`: the file is empty; name another file");
    }

    #[test]
    fn a_command_line_is_short_and_printable() {
        let line = |text: &str| line_of(with_kernel(|kernel| kernel.cmdline = text.into()));
        assert!(line(&"x".repeat(2048)).contains("has 2048 bytes, more than 2047; shorten it"));
        assert!(line("quiet\0").contains("'\\0' cannot stand in a command line; leave it out"));
    }

    #[test]
    fn a_flat_kernel_lies_in_ram_and_is_entered_inside_itself() {
        let line = |load, entry| line_of(flat(load, entry));
        let outside = "do not lie inside the VM's RAM, 0x40000000 to 0x50000000";
        assert!(line(0x3fff_f000, 0x4000_0000).contains(outside));
        assert!(line(0x4fff_f800, 0x4fff_f800).contains(outside));
        assert!(line(u64::MAX, 0).contains(outside));
        assert!(line(0x4000_0800, 0x4000_0800).ends_with("load it at 0x40000000, a multiple of 4 KiB"));
        assert!(line(0x4000_0000, 0x4000_1000).contains("is outside the kernel, 0x40000000 to 0x40001000"));
        assert!(line(0x4000_0000, 0x4000_0002).ends_with("enter at 0x40000000, a multiple of 4"));
    }

    #[test]
    fn every_problem_is_reported() {
        let worst = Vm { vcpus: 0, cpus: vec![0, 0], ram_bytes: 0, ..named("log") };
        let places: Vec<Place> =
            check(&system(vec![linux(), worst]), &FILES).unwrap_err().iter().map(|it| it.place).collect();
        let fields = [Field::Name, Field::Vcpus, Field::Cpu(1), Field::Ram];
        assert_eq!(places, fields.map(|field| Place::Vm(1, field)));
    }

    proptest! {
        #[test]
        fn any_system_is_checked_and_each_problem_is_one_line(system in any_system()) {
            for problem in check(&system, &FILES).err().into_iter().flatten() {
                prop_assert!(!problem.to_string().contains('\n'));
            }
        }
    }
}
