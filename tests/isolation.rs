//! Compartments: what one VM does is never another's business.

mod fake;

use bulkhead::arch::{Exit, Stop};
use bulkhead::config::Unmapped;
use bulkhead::memory::PAGE;
use bulkhead::vm::Phase;
use bulkhead_vdev::{Gpa, GuestMemory as _, virt};
use fake::guests::{Act, does, faults, read, stops, waits, works};
use fake::rig::{Plan, RAM, Rig, logged_with, milliseconds};
use std::collections::HashSet;

/// A VM that ends itself with `act`, beside one that works; on CPUs of their own, or on the same one.
fn beside(act: fn() -> Act, shared: bool) -> Rig {
    let other = u32::from(!shared);
    let plan = Plan::new(2).vm("bad", &[0], vec![does([Act::Work(1000), act()])]);
    plan.with(|vm| vm.config.unmapped = Unmapped::Stop).vm("good", &[other], vec![works()]).boot()
}

fn reads_nothing() -> Act {
    read(Gpa(0x1234_0000))
}

#[test]
fn a_neighbour_goes_on_whatever_ends_a_vm() {
    let ends: [fn() -> Act; 4] = [faults, reads_nothing, || stops(Stop::PowerOff), || stops(Stop::CpuOff)];
    for (end, shared) in ends.into_iter().flat_map(|end| [(end, true), (end, false)]) {
        let rig = beside(end, shared);
        rig.until(|rig| rig.phases()[0] == Phase::Ended);
        let before = rig.worked(1, 0);
        rig.pass(milliseconds(100));
        assert_eq!(rig.phases(), [Phase::Ended, Phase::Running]);
        assert!(rig.worked(1, 0) - before > milliseconds(90));
        assert!(!rig.is_off());
    }
}

#[test]
fn a_strict_vm_ends_where_nothing_is_and_the_place_is_said() {
    let rig = beside(reads_nothing, false);
    rig.until(|rig| rig.phases()[0] == Phase::Ended);
    assert_eq!(logged_with("bad: stopped, because it read where nothing is, at address 0x12340000"), 1);
    assert!(rig.replies(0, 0).is_empty(), "the instruction was never done");
}

#[test]
fn a_neighbour_keeps_its_ram_through_a_reset() {
    let resets = does((0..3).map(|_| stops(Stop::Reset)));
    let rig = Plan::new(1).vm("resets", &[0], vec![resets]).vm("keeps", &[0], vec![waits()]).boot();
    rig.until(|rig| rig.boots(1, 0) == 1);
    let note = vec![0xa5; usize::try_from(RAM).unwrap()];
    rig.vm(1).memory().write(virt::RAM, &note).unwrap();
    rig.until(|rig| rig.boots(0, 0) == 4);
    rig.settle();
    let mut kept = vec![0; note.len()];
    rig.vm(1).memory().read(virt::RAM, &mut kept).unwrap();
    assert!(kept == note);
}

#[test]
fn a_vm_that_calls_without_end_does_not_stop_its_neighbour() {
    let floods = Box::new(|_: &mut fake::guests::Turn<'_>| Exit::Hypercall(0, [0; 4]).into());
    let rig = Plan::new(2).vm("floods", &[0], vec![floods]).vm("works", &[1], vec![works()]).boot();
    rig.until(|rig| rig.phases() == [Phase::Running; 2]);
    // Nothing but another CPU's kick brings it back, as time stands still while it calls.
    let kick = rig.machine();
    kick.intrude(bulkhead::arch::CpuId(0), 500, move || {
        kick.with(|state| state.cpu(bulkhead::arch::CpuId(0)).kicked = true);
    });
    assert!(rig.step(0));
    assert!(rig.step(1));
    assert!(rig.worked(1, 0) > 0);
}

#[test]
fn each_vm_reaches_all_of_its_own_ram_and_nothing_else() {
    let mut plan = Plan::new(2);
    plan.used = vec![0..0x10_0000, 0x50_0000..0x60_1000, 0xa0_0000..0xa0_0001];
    for name in ["a", "b", "c"] {
        plan = plan.vm(name, &[], vec![waits()]);
    }
    let rig = plan.boot();
    let mut owned = HashSet::new();
    for vm in 0..3 {
        let reached = rig.reaches(vm, 1024);
        assert_eq!(reached.len() as u64, RAM / PAGE, "all of its RAM, and nothing around it");
        for (at, host) in reached {
            assert!((virt::RAM.0..virt::RAM.0 + RAM).contains(&at.0));
            assert!(owned.insert(host), "{host:#x} belongs to two VMs");
            assert!(rig.handed.host.contains(&host) && rig.handed.host.contains(&(host + PAGE - 1)));
            let used = rig.handed.used.iter().any(|used| host < used.end && used.start < host + PAGE);
            assert!(!used, "{host:#x} was used already");
        }
    }
}

#[test]
fn what_devices_write_lands_where_the_guest_looks() {
    let rig = Plan::new(1).vm("a", &[], vec![waits()]).vm("b", &[], vec![waits()]).boot();
    for vm in 0..2_u8 {
        let ram = rig.vm(vm.into()).memory();
        ram.write(virt::RAM, &vec![vm + 1; usize::try_from(RAM).unwrap()]).unwrap();
        assert!(ram.write(Gpa(virt::RAM.0 + RAM - 1), &[9, 9]).is_err());
        assert!(ram.write(Gpa(virt::RAM.0 - 1), &[9, 9]).is_err());
    }
    let mut all = vec![0; usize::try_from(RAM).unwrap()];
    rig.vm(0).memory().read(virt::RAM, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 1));
}
