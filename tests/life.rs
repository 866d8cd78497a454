//! A VM's life: load, run, stop, and what follows; also while other CPUs are in the middle of something.

mod fake;

use bulkhead::arch::{Exit, Stop};
use bulkhead::config::OnFault;
use bulkhead::vm::Phase;
use bulkhead_vdev::{Gpa, GuestMemory as _, virt};
use fake::guests::{Act, Guest, does, faults, read, starts, stops, waits, wire, works, write};
use fake::machine::Reply;
use fake::rig::{Plan, Rig, logged_with, milliseconds};
use fake::{LATCH, LATCH_LINE};

/// Where the kernel of a test's VM lies, and what it is.
const KERNEL: Gpa = Gpa(virt::RAM.0 + 0x1000);

fn kernel_of(rig: &Rig, vm: usize) -> Vec<u8> {
    let mut bytes = vec![0; 15];
    rig.vm(vm).memory().read(KERNEL, &mut bytes).unwrap();
    bytes
}

/// Scribbles over its kernel at first, raises a wire, and stops so; after a restart it looks at the wire and waits.
fn scribbles(why: fn() -> Act) -> Guest {
    let mut acts = 0;
    Box::new(move |turn| {
        acts += 1;
        match (turn.boots, acts) {
            (1, 1) => wire(1),
            (1, _) => {
                turn.vm.memory().write(KERNEL, b"scribble, scribble").unwrap();
                why()
            }
            (2, 3) => read(LATCH),
            _ => Exit::Idle.into(),
        }
    })
}

#[test]
fn a_reset_starts_the_pristine_payload_on_a_machine_as_after_power_on() {
    let rig = Plan::new(1).vm("v", &[], vec![scribbles(|| stops(Stop::Reset))]).boot();
    rig.until(|rig| rig.boots(0, 0) == 1);
    rig.settle();
    assert_eq!(rig.boots(0, 0), 2);
    assert_eq!(&kernel_of(&rig, 0), b"the kernel of v");
    assert_eq!(rig.replies(0, 0), [Reply::Value(1), Reply::Value(0)], "the device is as after power-on");
    assert!(!rig.vm(0).irqs(&rig.arch(0)).high.contains(&LATCH_LINE), "and so is its wire");
    assert_eq!(rig.phases(), [Phase::Running]);
}

#[test]
fn a_fault_restarts_a_vm_if_its_integrator_wants_so() {
    let restart = |vm: &mut fake::rig::Planned| vm.config.on_fault = OnFault::Restart;
    let rig = Plan::new(1).vm("v", &[], vec![scribbles(faults)]).with(restart).boot();
    rig.settle();
    assert_eq!(rig.boots(0, 0), 2);
    assert_eq!(&kernel_of(&rig, 0), b"the kernel of v");
    assert_eq!(logged_with("stopped, because it did what it cannot do, at address 0x42"), 1);
    assert_eq!(logged_with("entered at"), 1, "the registers are part of the report");
}

#[test]
fn a_fault_ends_a_vm_otherwise() {
    let rig = Plan::new(1).vm("v", &[], vec![does([faults()])]).boot();
    rig.settle();
    assert!(rig.is_off());
    assert_eq!(rig.boots(0, 0), 1);
}

#[test]
fn the_end_of_the_last_vm_switches_the_machine_off() {
    let off = || vec![does([stops(Stop::PowerOff)])];
    let rig = Plan::new(2).vm("a", &[0], off()).vm("b", &[1], off()).boot();
    while rig.step(0) {}
    assert_eq!(rig.phases(), [Phase::Ended, Phase::Loading]);
    assert!(!rig.is_off());
    while rig.step(1) {}
    assert!(rig.is_off());
    assert_eq!(logged_with("all VMs have ended"), 1);
}

/// Starts the other three vCPUs, does `acts`, and waits.
fn first_of_four(acts: Vec<Act>) -> Vec<Guest> {
    let first = (1..4).map(|vcpu| starts(vcpu, 0)).chain((0..8).map(|_| Exit::Preempted.into())).chain(acts);
    vec![does(first), waits(), works(), does([])]
}

/// All orders of 0, 1, 2 and 3.
fn orders() -> Vec<[usize; 4]> {
    let all = 0..256_usize;
    let digits = all.map(|number| [0, 2, 4, 6].map(|shift| number >> shift & 3));
    digits.filter(|order| (0..4).all(|cpu| order.contains(&cpu))).collect()
}

#[test]
fn vcpus_park_in_any_order() {
    for order in orders() {
        let rig = Plan::new(4).vm("v", &[0, 1, 2, 3], first_of_four(vec![stops(Stop::Reset)])).boot();
        rig.until(|rig| rig.phases() == [Phase::Stopping]);
        for cpu in order {
            assert_eq!(rig.phases(), [Phase::Stopping]);
            while !rig.step(cpu) {}
        }
        assert_eq!(rig.phases(), [Phase::Loading], "{order:?}");
        rig.until(|rig| rig.boots(0, 0) == 2);
        assert_eq!(rig.boots(0, 3), 1, "only the first vCPU starts by itself");
    }
}

#[test]
fn two_who_stop_at_once_stop_their_vm_once() {
    for calls in 0..30 {
        let second = does([stops(Stop::PowerOff)]);
        let rig = Plan::new(2).vm("v", &[0, 1], vec![does([starts(1, 0), faults()]), second]).boot();
        rig.intrude(0, calls, 1, 4);
        rig.until(Rig::is_off);
        assert_eq!(rig.vm(0).stops(), 1);
    }
}

#[test]
fn a_restart_may_come_again_and_again_at_any_moment_of_the_other_cpu() {
    for calls in 0..40 {
        let first = does((0..5).flat_map(|_| [starts(1, 0), stops(Stop::Reset)]));
        let rig = Plan::new(2).vm("v", &[0, 1], vec![first, works()]).boot();
        rig.intrude(1, calls, 0, 3);
        rig.until(|rig| rig.boots(0, 0) == 6);
        rig.settle();
        assert_eq!(rig.phases(), [Phase::Running]);
    }
}

#[test]
fn input_during_a_restart_leaves_no_wire_behind() {
    for calls in 0..30 {
        let rig = Plan::new(1).vm("v", &[0], vec![scribbles(|| stops(Stop::Reset))]).boot();
        rig.until(|rig| rig.vm(0).stops() == 1);
        let (vm, arch) = (rig.vm(0), rig.arch(0));
        rig.machine().intrude(bulkhead::arch::CpuId(0), calls, move || vm.notify(&arch));
        rig.until(|rig| rig.boots(0, 0) == 2);
        rig.settle();
        assert!(rig.vm(0).irqs(&rig.arch(0)).high.is_empty());
    }
}

#[test]
fn a_vm_that_resets_for_ever_leaves_its_neighbour_half_the_cpu() {
    let resets: Guest = Box::new(|_| stops(Stop::Reset));
    let large = |vm: &mut fake::rig::Planned| vm.kernel = vec![1; 1 << 20];
    let plan = Plan::new(1).vm("resets", &[0], vec![resets]).with(large).vm("works", &[0], vec![works()]);
    let rig = plan.boot();
    rig.machine().with(|state| state.ticks_per_copied_page = 2000);
    rig.pass(milliseconds(1000));
    assert!(rig.boots(0, 0) > 10);
    let worked = rig.worked(1, 0);
    assert!(worked >= milliseconds(450), "{worked} ticks");
}

#[test]
fn a_vm_that_resets_for_ever_does_not_fill_the_log() {
    let resets: Guest = Box::new(|_| stops(Stop::Reset));
    let rig = Plan::new(1).vm("resets", &[0], vec![resets]).vm("works", &[0], vec![works()]).boot();
    rig.pass(milliseconds(1000));
    assert!(rig.boots(0, 0) > 100);
    let lines = logged_with("resets: ");
    assert!(lines < 85, "{lines} lines");
    assert!(logged_with("lines were left out") > 0);
}

#[test]
fn an_end_is_for_ever() {
    let plan = Plan::new(1).vm("ends", &[0], vec![does([write(LATCH, 1), stops(Stop::PowerOff)])]);
    let rig = plan.vm("works", &[0], vec![works()]).boot();
    rig.until(|rig| rig.phases()[0] == Phase::Ended);
    let arch = rig.arch(0);
    assert!(!rig.vm(0).stop(&arch, Stop::Reset));
    rig.vm(0).notify(&arch);
    rig.pass(milliseconds(20));
    assert_eq!(rig.phases(), [Phase::Ended, Phase::Running]);
    assert_eq!(rig.boots(0, 0), 1);
}
