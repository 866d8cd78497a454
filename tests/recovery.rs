//! What a panic of the hypervisor's leaves: the VM in whose service it came ends, and nobody else notices.

mod fake;

use bulkhead::arch::{CpuId, Exit};
use bulkhead::config::Privilege;
use bulkhead::vm::Phase;
use bulkhead_vdev::{Gpa, virt};
use fake::guests::{
    Act, Guest, breaks, breaks_later, does, faults, prints, starts, waits, wire, works, write,
};
use fake::rig::{Plan, logged_with, milliseconds};
use std::sync::atomic::{AtomicUsize, Ordering};

fn panics(how: u64) -> Act {
    Exit::Hypercall(0xdead, [how, 0, 0, 0]).into()
}

#[test]
fn a_panic_ends_the_vm_that_was_served_and_says_so() {
    let rig = Plan::new(2)
        .vm("broken", &[0], vec![does([breaks()])])
        .vm("whole", &[1], vec![does(prints("still here\r\n"))])
        .boot();
    rig.settle();
    assert_eq!(rig.phases(), [Phase::Ended, Phase::Running]);
    assert_eq!(logged_with("the latch breaks"), 1);
    assert_eq!(logged_with("broken: ended, because the hypervisor failed in its service"), 1);
    assert!(rig.handed.screen.text().contains("still here"));
}

#[test]
fn who_shares_the_cpu_with_the_vm_that_ended_has_it_alone() {
    let rig = Plan::new(1)
        .vm("broken", &[0], vec![does([Act::Work(10), breaks()])])
        .vm("whole", &[0], vec![works()])
        .boot();
    rig.until(|rig| rig.phases()[0] == Phase::Ended);
    let before = rig.worked(1, 0);
    rig.pass(1_000_000);
    assert!(rig.worked(1, 0) - before > 900_000);
}

#[test]
fn the_other_cpus_of_the_vm_leave_it() {
    let broken = vec![does([starts(1, 0), Act::Work(100), breaks()]), works()];
    let rig = Plan::new(2).vm("broken", &[0, 1], broken).vm("whole", &[1], vec![waits()]).boot();
    rig.settle();
    assert_eq!(rig.phases(), [Phase::Ended, Phase::Running]);
}

#[test]
fn a_cpu_that_waits_for_a_lock_of_an_ended_vm_goes_on_without_it() {
    let rig = Plan::new(2).vm("broken", &[0], vec![does([wire(1)])]).vm("whole", &[0], vec![works()]).boot();
    let (vm, arch) = (rig.vm(0), rig.arch(1));
    rig.until(|rig| rig.phases() == [Phase::Running; 2]);
    // As a CPU does that panics with the lock held.
    std::mem::forget(vm.irqs(&arch));
    vm.condemn(&arch);
    let before = rig.worked(1, 0);
    rig.pass(1_000_000);
    assert!(rig.worked(1, 0) > before);
    assert_eq!(logged_with("failed in its service"), 0, "whoever failed says so");
}

#[test]
fn a_panic_while_a_device_is_told_of_its_time_is_blamed_on_its_vm() {
    let rig =
        Plan::new(1).vm("broken", &[0], vec![does([breaks_later()])]).vm("whole", &[0], vec![works()]).boot();
    rig.pass(10_000_000);
    assert_eq!(rig.phases(), [Phase::Ended, Phase::Running]);
}

#[test]
fn a_panic_for_nobody_stops_the_machine() {
    let rig = Plan::new(1).vm("vm", &[0], vec![works()]).boot();
    rig.until(|rig| rig.phases() == [Phase::Running]);
    assert!(!rig.recover(0));
}

#[test]
fn a_panic_with_the_consoles_locked_stops_the_machine() {
    let rig = Plan::new(2)
        .vm("broken", &[0], vec![does([panics(3)])])
        .with(|vm| vm.config.privileges.push(Privilege::ProvokePanic))
        .vm("whole", &[1], vec![works()])
        .boot();
    rig.until(|rig| rig.is_off());
}

#[test]
fn the_last_vm_that_ends_so_switches_the_machine_off() {
    let rig = Plan::new(1).vm("broken", &[0], vec![does([breaks()])]).boot();
    rig.settle();
    assert!(rig.is_off());
}

#[test]
fn a_panic_at_any_moment_of_another_cpu_of_the_vm_leaves_the_neighbour_alone() {
    for calls in 0..100 {
        let broken = vec![does([starts(1, 0), wire(1), wire(0), faults()]), does([wire(1), wire(0)])];
        let rig = Plan::new(2).vm("broken", &[0, 1], broken).vm("whole", &[1], vec![works()]).boot();
        let (vm, arch) = (rig.vm(0), rig.arch(0));
        rig.machine().intrude(CpuId(1), calls, move || vm.condemn(&arch));
        rig.pass(1_000_000);
        assert_eq!(rig.phases()[1], Phase::Running);
        assert!(rig.worked(1, 0) > 0);
    }
}

#[test]
fn a_vcpu_that_is_loaded_by_half_when_its_vm_ends_leaves_nothing_on_its_cpu() {
    let busy = || -> Guest { Box::new(|_| Act::Work(milliseconds(1))) };
    for calls in 0..25 {
        let rig = Plan::new(2).vm("broken", &[0], vec![busy()]).vm("whole", &[0], vec![busy()]).boot();
        let (vm, arch) = (rig.vm(0), rig.arch(1));
        rig.until(|rig| rig.worked(0, 0) > 0 && rig.worked(1, 0) > 0);
        rig.machine().intrude(CpuId(0), calls, move || {
            // As another CPU does that panics with the lock held.
            std::mem::forget(vm.irqs(&arch));
            vm.condemn(&arch);
        });
        let before = rig.worked(1, 0);
        // The fake would find two vCPUs loaded at once.
        rig.pass(milliseconds(20));
        assert!(rig.worked(1, 0) > before);
    }
}

#[test]
fn a_panic_while_one_vm_is_told_of_its_input_loses_no_other_vms() {
    let told: &'static AtomicUsize = Box::leak(Box::default());
    // Receiver and UART on, receive interrupts unmasked (DDI 0183, 3.3.8 and 3.3.10).
    let mut acts = vec![write(Gpa(virt::UART.0 + 0x38), 0x50), write(Gpa(virt::UART.0 + 0x30), 0x301)];
    let hears: Guest = Box::new(move |turn| {
        told.fetch_add(usize::from(turn.attention), Ordering::SeqCst);
        acts.pop().unwrap_or_else(|| Exit::Idle.into())
    });
    let rig =
        Plan::new(3).vm("broken", &[1], vec![does([breaks_later()])]).vm("whole", &[2], vec![hears]).boot();
    rig.until(|rig| rig.is_idle(0, 0) && rig.is_idle(1, 0));
    // CPU 0 comes before the alarm's own CPU.
    rig.machine().with(|state| {
        state.now += milliseconds(1);
        state.cpu(CpuId(0)).kicked = true;
    });
    rig.handed.screen.type_in("x\x01ny");
    rig.settle();
    assert_eq!(rig.phases(), [Phase::Ended, Phase::Running]);
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[test]
fn only_who_may_can_make_the_hypervisor_fail() {
    let rig = Plan::new(1)
        .vm("may-not", &[0], vec![does([panics(0)])])
        .vm("may", &[0], vec![does([panics(1)])])
        .with(|vm| vm.config.privileges.push(Privilege::ProvokePanic))
        .boot();
    rig.settle();
    assert_eq!(rig.phases(), [Phase::Running, Phase::Ended]);
}
