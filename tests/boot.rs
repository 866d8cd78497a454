//! From an archive to a guest's first instruction, on the fake machine; and what is refused on the way.

mod fake;

use bulkhead::arch::{CpuId, Stop};
use bulkhead::boot::BootError;
use bulkhead::config::archive::ArchiveError;
use bulkhead::config::{Architecture, KernelFormat};
use bulkhead_vdev::{Gpa, GuestMemory as _, virt};
use fake::guests::{does, prints, stops, waits};
use fake::rig::{Plan, RAM, logged_with};
use fake::{OVERLAPPING, REFUSED, TOO_HIGH};

fn one() -> Plan {
    Plan::new(2).vm("one", &[1], vec![waits()])
}

/// A kernel long enough to hold its entry.
fn padded(start: &[u8]) -> Vec<u8> {
    [start, &[0; 16]].concat()
}

fn refusal(plan: Plan) -> BootError {
    let Err(error) = plan.build() else { panic!("it booted") };
    assert!(!error.to_string().contains('\n'));
    error
}

#[test]
fn the_first_instruction_comes_with_the_payload_in_place() {
    let rig = one().boot();
    assert_eq!(rig.boots(0, 0), 0);
    rig.settle();
    let entry = rig.machine().with(|state| state.guest((0, 0)).entries[0]);
    assert_eq!(entry.pc, Gpa(virt::RAM.0 + 0x1008));
    assert_eq!(entry.arguments, [virt::RAM.0 + RAM, RAM, 0, 0]);
    let mut kernel = [0; 17];
    rig.vm(0).memory().read(Gpa(virt::RAM.0 + 0x1000), &mut kernel).unwrap();
    assert_eq!(&kernel, b"the kernel of one");
    assert_eq!(logged_with("first guest instruction"), 1);
}

#[test]
fn a_large_payload_is_loaded_in_short_steps() {
    let kernel: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[2]).collect();
    let rig = one().with(|vm| vm.kernel = kernel.clone()).boot();
    let mut steps = 0;
    while rig.boots(0, 0) == 0 {
        assert!(rig.step(1), "a CPU that loads does not sleep");
        steps += 1;
    }
    assert!(steps >= 4, "{steps} steps");
    let mut copy = vec![0; kernel.len()];
    rig.vm(0).memory().read(Gpa(virt::RAM.0 + 0x1000), &mut copy).unwrap();
    assert!(copy == kernel);
}

#[test]
fn all_of_it_in_threads_until_the_last_vm_ends() {
    let program = |text| does(prints(text).into_iter().chain([stops(Stop::PowerOff)]));
    let plan = Plan::new(4).vm("a", &[2], vec![program("hello\n")]).vm("b", &[3], vec![program("world\n")]);
    let (handed, error) = plan.run_in_threads();
    assert!(error.is_none());
    let screen = handed.screen.text();
    assert!(screen.contains("[a] ") && screen.contains("[b] "), "{screen:?}");
}

#[test]
fn an_archive_that_is_damaged_is_refused() {
    let mut plan = one();
    plan.harm = |archive| {
        let last = archive.len() - 1;
        archive[last] ^= 1;
    };
    assert!(matches!(refusal(plan), BootError::Archive(ArchiveError::Damaged)));
}

#[test]
fn an_archive_cut_short_is_refused() {
    let mut plan = one();
    plan.harm = |archive| archive.truncate(archive.len() - 1);
    assert!(matches!(refusal(plan), BootError::Archive(ArchiveError::Truncated { .. })));
}

#[test]
fn a_system_for_another_architecture_is_refused() {
    let mut plan = one().with(|vm| vm.config.kernel.format = KernelFormat::Pvh);
    plan.arch = Architecture::X86_64;
    assert!(matches!(refusal(plan), BootError::Architecture(Architecture::X86_64)));
}

#[test]
fn a_cpu_that_the_machine_lacks_is_refused() {
    let plan = one().vm("two", &[0, 2], vec![waits()]);
    assert!(matches!(refusal(plan), BootError::NoSuchCpu { vm: 1, cpu: 2, cpus: 2 }));
}

#[test]
fn ram_that_does_not_fit_is_refused() {
    let plan = one().vm("two", &[], vec![waits()]).with(|vm| vm.config.ram_bytes = 1 << 30);
    assert!(matches!(refusal(plan), BootError::DoesNotFit(lack) if lack.vm == 1 && lack.wanted == 1 << 30));
}

#[test]
fn ram_behind_the_address_space_is_not_blamed_on_the_frames() {
    let mut plan = one();
    plan.machine.address_bits = 30;
    let error = refusal(plan);
    assert!(matches!(error, BootError::Payload { vm: 0, .. }), "{error}");
}

#[test]
fn too_few_frames_are_said() {
    let mut plan = one();
    plan.frames = 2;
    assert!(matches!(refusal(plan), BootError::NoFrames));
}

#[test]
fn a_payload_that_the_board_refuses_is_named() {
    let refused = one().with(|vm| vm.kernel = padded(REFUSED));
    assert_eq!(refusal(refused).to_string(), "vm 0 cannot boot: the board refuses it");
    let image = one().with(|vm| vm.config.kernel.format = KernelFormat::Arm64Image);
    assert_eq!(refusal(image).to_string(), "vm 0 cannot boot: it is not flat");
}

#[test]
fn devices_that_overlap_are_refused() {
    let plan = one().with(|vm| vm.kernel = padded(OVERLAPPING));
    assert!(refusal(plan).to_string().contains("overlap"));
}

#[test]
fn a_payload_outside_ram_is_refused_before_anything_runs() {
    let plan = one().with(|vm| vm.kernel = padded(TOO_HIGH));
    assert!(matches!(refusal(plan), BootError::Payload { vm: 0, .. }));
}

#[test]
fn more_vcpus_on_a_cpu_than_it_can_serve_are_refused() {
    let mut plan = Plan::new(1);
    for vm in 0..5 {
        plan = plan.vm(&format!("vm{vm}"), &[], (0..16).map(|_| waits()).collect());
    }
    let error = refusal(plan);
    assert!(error.to_string().contains("CPU 0"), "{error}");
}

#[test]
fn a_cpu_that_does_not_start_is_the_machines_fault() {
    let mut plan = one();
    plan.machine.broken_cpu = Some(CpuId(1));
    let (handed, error) = plan.run_in_threads();
    assert_eq!(error.unwrap().to_string(), "this CPU is broken");
    assert_eq!(handed.machine.with(|state| state.guest((0, 0)).entries.len()), 0);
}
