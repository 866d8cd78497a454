//! The controller against the manual's tables and rules.

use alloc::vec::Vec;

use super::simulator::Machine;
use super::{Gicv3, IrqLines, ListRegister, Maintenance};
use crate::{Access, VcpuSet, Width};

pub(super) const ISPENDR: u64 = 0x200;
pub(super) const ICPENDR: u64 = 0x280;
pub(super) const ISACTIVER: u64 = 0x300;
pub(super) const ICACTIVER: u64 = 0x380;
pub(super) const ISENABLER: u64 = 0x100;
pub(super) const ICENABLER: u64 = 0x180;
const IPRIORITYR: u64 = 0x400;
pub(super) const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;

/// An SGI to the targets in `list`.
pub(super) fn sgi(intid: u64, list: u64) -> u64 {
    intid << 24 | list
}

pub(super) fn set_priority(machine: &mut Machine, vcpu: usize, intid: u32, priority: u8) {
    let access = Access::Write(Width::Byte, priority.into());
    let offset = IPRIORITYR + u64::from(intid);
    if intid < 32 {
        machine.access_private(vcpu, (vcpu as u64) << 17 | 0x1_0000 | offset, access);
    } else {
        machine.access(vcpu, offset, access);
    }
}

pub(super) fn set_route(machine: &mut Machine, vcpu: usize, intid: u32, route: u64) {
    machine.access(vcpu, IROUTER + 8 * u64::from(intid), Access::Write(Width::Double, route));
}

fn acknowledge_all(machine: &mut Machine, vcpu: usize) -> Vec<u32> {
    let mut taken = Vec::new();
    while let Some(intid) = machine.acknowledge(vcpu) {
        taken.push(intid);
        machine.end(vcpu);
    }
    taken
}

#[test]
fn a_list_register_has_the_manuals_fields() {
    let linked = ListRegister::new(27, 0xa0).in_group(1).linked_to(27).pending();
    assert_eq!(linked.0, 0x70a0_001b_0000_001b);
    assert_eq!((linked.intid(), linked.priority(), linked.group()), (27, 0xa0, 1));
    assert_eq!(linked.physical(), Some(27));
    let level = ListRegister::new(33, 0x80).active().with_eoi();
    assert_eq!(level.0, 0x8080_0200_0000_0021);
    assert!(level.has_eoi() && level.is_active() && !level.is_pending() && level.physical().is_none());
}

#[test]
fn identification_is_that_of_a_gicv3_with_one_security_state() {
    let mut machine = Machine::new(3, 4);
    assert_eq!(machine.read(0, 0xffe8), 0x3b);
    assert_eq!(machine.read(0, 4), 0x0148_0008);
    assert_eq!(machine.read(0, 0), 0x50);
    machine.write(0, 0, u32::MAX);
    assert_eq!(machine.read(0, 0), 0x53);
    let typer = |machine: &mut Machine, vcpu: u64| {
        machine.access_private(0, vcpu << 17 | 8, Access::Read(Width::Double))
    };
    assert_eq!(typer(&mut machine, 0), 0);
    assert_eq!(typer(&mut machine, 1), 0x0000_0001_0000_0100);
    assert_eq!(typer(&mut machine, 2), 0x0000_0002_0000_0210);
    assert_eq!(typer(&mut machine, 3), 0);
    assert_eq!(machine.access_private(0, 2 << 17 | 12, Access::Read(Width::Word)), 2);
    assert_eq!(machine.access_private(0, 1 << 17 | 0xffe8, Access::Read(Width::Word)), 0x3b);
}

#[test]
fn the_waker_hands_over_both_ways() {
    let mut machine = Machine::new(2, 4);
    let waker = 1 << 17 | 0x14;
    assert_eq!(machine.access_private(1, waker, Access::Read(Width::Word)), 6);
    machine.access_private(1, waker, Access::Write(Width::Word, 0));
    assert_eq!(machine.access_private(1, waker, Access::Read(Width::Word)), 0);
    machine.access_private(1, waker, Access::Write(Width::Word, 2));
    assert_eq!(machine.access_private(1, waker, Access::Read(Width::Word)), 6);
}

#[test]
fn registers_keep_what_is_implemented_and_no_more() {
    let mut machine = Machine::new(1, 4);
    // Register, value written, value read; word 0 belongs to the redistributor.
    let table = [
        (0x080, u32::MAX, 0),
        (0x084, 0x1234_5678, 0x1234_5678),
        (0x0a4, u32::MAX, 0),
        (0x104, 0x0000_00ff, 0x0000_00ff),
        (0x184, 0x0000_000f, 0x0000_00f0),
        (0x420, u32::MAX, 0xf8f8_f8f8),
        (0x400, u32::MAX, 0),
        (0x820, u32::MAX, 0),
        (0xc08, u32::MAX, 0xaaaa_aaaa),
        (0xd04, u32::MAX, 0),
        (0xe08, u32::MAX, 0),
        (0x040, 40, 0),
        (0x6000, u32::MAX, 0),
        (0x6108, u32::MAX, 0x80ff_ffff),
        (0x610c, u32::MAX, 0xff),
    ];
    for (offset, written, read) in table {
        machine.write(0, offset, written);
        assert_eq!(machine.read(0, offset), read, "register {offset:#x}");
    }
    let private = [
        (0x080, u32::MAX, u32::MAX),
        (0x084, u32::MAX, 0),
        (0x100, 0xffff_0001, 0xffff_0001),
        (0x41c, 0x1011_1213, 0x1010_1010),
        (0xc00, 0, 0xaaaa_aaaa),
        (0xc04, u32::MAX, 0x8a2a_aaaa),
        (0xd00, u32::MAX, 0),
    ];
    for (offset, written, read) in private {
        machine.write_private(0, 0, offset, written);
        assert_eq!(machine.read_private(0, 0, offset), read, "private register {offset:#x}");
    }
}

#[test]
fn an_sgi_reaches_its_targets_once() {
    let mut machine = Machine::open(4, 4);
    machine.send_sgi(0, sgi(5, 0b1011));
    for vcpu in [0, 1, 3] {
        assert_eq!(acknowledge_all(&mut machine, vcpu), [5]);
    }
    assert_eq!(machine.acknowledge(2), None);
    machine.send_sgi(2, sgi(7, 0) | 1 << 40);
    assert_eq!(machine.acknowledge(2), None);
    for vcpu in [0, 1, 3] {
        assert_eq!(acknowledge_all(&mut machine, vcpu), [7]);
    }
    for elsewhere in [1 << 16, 1 << 32, 1 << 48, 1 << 44] {
        machine.send_sgi(0, sgi(1, 0xffff) | elsewhere);
        assert_eq!(machine.acknowledge(1), None);
    }
}

#[test]
fn an_sgi_of_the_other_group_is_not_sent() {
    let mut machine = Machine::open(2, 4);
    machine.write_private(1, 1, 0x80, !(1 << 3));
    machine.send_sgi(0, sgi(3, 2));
    assert_eq!(machine.acknowledge(1), None);
    let kick = machine.gic.send_group_0_sgi(0, sgi(3, 2), &mut machine.cpus[0]);
    assert_eq!(kick, VcpuSet::only(1));
    machine.run();
    assert_eq!(machine.cpus[1].lists(3).map(ListRegister::group), Some(0));
    assert_eq!(machine.acknowledge(1), Some(3));
}

#[test]
fn an_sgi_to_itself_while_active_comes_again_after_the_end() {
    let mut machine = Machine::open(1, 4);
    machine.send_sgi(0, sgi(2, 1));
    assert_eq!(machine.acknowledge(0), Some(2));
    machine.send_sgi(0, sgi(2, 1));
    assert!(machine.cpus[0].lists(2).is_some_and(|list| list.is_active() && list.is_pending()));
    assert_eq!(machine.acknowledge(0), None);
    machine.end(0);
    assert_eq!(acknowledge_all(&mut machine, 0), [2]);
}

#[test]
fn more_pending_than_list_registers_come_in_order_of_priority() {
    for lists in 1..=16 {
        let mut machine = Machine::open(1, lists);
        for intid in 0..16 {
            set_priority(&mut machine, 0, intid, u8::try_from(intid * 5 % 16 * 8).unwrap());
        }
        for intid in 0..16 {
            machine.send_sgi(0, sgi(intid, 1));
        }
        let taken = acknowledge_all(&mut machine, 0);
        let mut wanted: Vec<u32> = (0..16).collect();
        wanted.sort_by_key(|intid| intid * 5 % 16);
        assert_eq!(taken, wanted);
        // Refills are rare: one for all but one list register.
        assert!(lists < 3 || machine.cpus[0].maintained as usize <= 16 / (lists - 1) + 1);
        assert_eq!(machine.cpus[0].maintenance, Maintenance::empty());
    }
}

#[test]
fn nested_handlers_deeper_than_the_list_registers_still_get_more_urgent_ones() {
    for lists in 1..=4 {
        let mut machine = Machine::open(1, lists);
        for intid in 0..16 {
            set_priority(&mut machine, 0, intid, u8::try_from((15 - intid) * 8).unwrap());
        }
        for intid in 0..16 {
            machine.send_sgi(0, sgi(intid.into(), 1));
            assert_eq!(machine.acknowledge(0), Some(intid));
        }
        assert_eq!(machine.read_private(0, 0, ISACTIVER), 0xffff);
        for intid in (0..16).rev() {
            assert_eq!(machine.end(0), Some(intid));
            assert_eq!(machine.read_private(0, 0, ISACTIVER), (1 << intid) - 1);
        }
        machine.send_sgi(0, sgi(0, 1));
        assert_eq!(acknowledge_all(&mut machine, 0), [0]);
    }
}

#[test]
fn a_level_comes_again_as_long_as_the_line_is_high() {
    let mut machine = Machine::open(1, 4);
    machine.set_line(33, true);
    for _ in 0..3 {
        assert_eq!(machine.acknowledge(0), Some(33));
        assert_eq!(machine.end(0), Some(33));
    }
    machine.set_line(33, false);
    assert_eq!(machine.acknowledge(0), None);
    assert_eq!(machine.cpus[0].lists(33), None);
}

#[test]
fn a_line_lowered_in_the_handler_costs_no_maintenance_interrupt() {
    let mut machine = Machine::open(1, 4);
    machine.set_line(33, true);
    assert_eq!(machine.acknowledge(0), Some(33));
    machine.set_line(33, false);
    machine.end(0);
    assert_eq!(machine.cpus[0].maintained, 0);
    assert_eq!(machine.acknowledge(0), None);
}

#[test]
fn an_edge_is_latched_once_and_cleared_by_icpendr() {
    let mut machine = Machine::open(1, 4);
    machine.write(0, ICFGR + 8, 2 << 2);
    machine.set_line(33, true);
    machine.set_line(33, false);
    machine.set_line(33, true);
    assert_eq!(acknowledge_all(&mut machine, 0), [33]);
    machine.set_line(33, false);
    machine.set_line(33, true);
    machine.write(0, ICPENDR + 4, 2);
    assert_eq!(machine.acknowledge(0), None);
}

#[test]
fn a_disabled_interrupt_leaves_the_list_registers_and_keeps_its_state() {
    let mut machine = Machine::open(2, 4);
    set_route(&mut machine, 0, 40, 1);
    machine.write(0, ISPENDR + 4, 1 << 8);
    assert!(machine.cpus[1].lists(40).is_some());
    machine.write(0, ICENABLER + 4, 1 << 8);
    assert!(machine.cpus[1].lists(40).is_none());
    assert_eq!(machine.read(0, ISPENDR + 4), 1 << 8);
    machine.write(0, ISENABLER + 4, 1 << 8);
    assert_eq!(acknowledge_all(&mut machine, 1), [40]);
    machine.write(0, ISPENDR + 4, 1 << 8);
    machine.write(0, 0, 1);
    assert_eq!(machine.acknowledge(1), None);
    machine.write(0, 0, 2);
    assert_eq!(acknowledge_all(&mut machine, 1), [40]);
}

#[test]
fn a_pending_interrupt_follows_its_route_and_an_active_one_after_its_end() {
    let mut machine = Machine::open(3, 4);
    machine.set_line(50, true);
    set_route(&mut machine, 2, 50, 1);
    assert_eq!(machine.acknowledge(0), None);
    assert_eq!(machine.acknowledge(1), Some(50));
    set_route(&mut machine, 0, 50, 2);
    assert_eq!(machine.acknowledge(2), None);
    machine.end(1);
    assert_eq!(machine.acknowledge(1), None);
    assert_eq!(machine.acknowledge(2), Some(50));
    machine.end(2);
    set_route(&mut machine, 0, 50, 0x100);
    assert!((0..3).all(|vcpu| machine.acknowledge(vcpu).is_none()));
}

#[test]
fn an_interrupt_for_any_vcpu_goes_to_one_that_is_awake() {
    let mut machine = Machine::open(3, 4);
    machine.access_private(2, 2 << 17 | 0x14, Access::Write(Width::Word, 0));
    set_route(&mut machine, 0, 60, 1 << 31);
    machine.write(0, ISPENDR + 4, 1 << 28);
    assert_eq!(acknowledge_all(&mut machine, 2), [60]);
    machine.access_private(1, 1 << 17 | 0x14, Access::Write(Width::Word, 0));
    machine.write(0, ISPENDR + 4, 1 << 28);
    assert_eq!(acknowledge_all(&mut machine, 1), [60]);
    assert_eq!(machine.read(0, IROUTER + 8 * 60), 1 << 31);
}

#[test]
fn a_timer_is_linked_and_fires_again_only_after_its_end() {
    let mut machine = Machine::open(1, 4);
    machine.set_timer(0, 30, true);
    assert_eq!(machine.cpus[0].lists(30).and_then(ListRegister::physical), Some(26));
    assert_eq!(machine.acknowledge(0), Some(30));
    assert_eq!(machine.acknowledge(0), None);
    machine.set_timer(0, 30, false);
    machine.end(0);
    assert_eq!(machine.cpus[0].physical, 0);
    assert_eq!(machine.acknowledge(0), None);
    machine.set_timer(0, 30, true);
    assert_eq!(machine.acknowledge(0), Some(30));
}

#[test]
fn a_timer_that_fired_while_disabled_is_delivered_only_if_its_line_is_still_high() {
    let mut machine = Machine::open(1, 4);
    machine.write_private(0, 0, ICENABLER, 1 << 27);
    machine.set_timer(0, 27, true);
    assert_eq!(machine.read_private(0, 0, ISPENDR), 1 << 27);
    assert_eq!(machine.acknowledge(0), None);
    machine.cpus[0].lines = 0;
    assert_eq!(machine.read_private(0, 0, ISPENDR), 0);
    machine.write_private(0, 0, ISENABLER, 1 << 27);
    assert_eq!(machine.cpus[0].physical, 0);
    assert_eq!(machine.acknowledge(0), None);
    machine.write_private(0, 0, ICENABLER, 1 << 27);
    machine.set_timer(0, 27, true);
    machine.write_private(0, 0, ISENABLER, 1 << 27);
    assert_eq!(machine.acknowledge(0), Some(27));
}

#[test]
fn a_timer_that_fires_again_before_its_end_was_noticed_is_not_lost() {
    let mut machine = Machine::open(2, 4);
    machine.set_timer(0, 27, true);
    assert_eq!(machine.acknowledge(0), Some(27));
    let kick = machine.gic.send_sgi(1, sgi(0, 1), &mut machine.cpus[1]);
    assert_eq!(kick, VcpuSet::only(0));
    machine.cpus[0].end();
    machine.run();
    assert_eq!(machine.acknowledge(0), Some(0));
    machine.end(0);
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.set_timer(0, 27, false);
    machine.end(0);
    assert_eq!(machine.cpus[0].physical, 0);
}

#[test]
fn clearing_a_timers_active_state_lets_it_fire_again() {
    let mut machine = Machine::open(1, 4);
    machine.set_timer(0, 27, true);
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.cpus[0].lines = 0;
    machine.write_private(0, 0, ICACTIVER, 1 << 27);
    assert_eq!(machine.cpus[0].physical, 0);
    machine.end(0);
    machine.set_timer(0, 27, true);
    assert_eq!(machine.acknowledge(0), Some(27));
}

#[test]
fn a_timer_pended_by_software_while_active_is_not_lost() {
    let mut machine = Machine::open(1, 4);
    machine.set_timer(0, 27, true);
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.write_private(0, 0, ISPENDR, 1 << 27);
    machine.set_timer(0, 27, false);
    machine.end(0);
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.end(0);
    assert_eq!(machine.acknowledge(0), None);
    assert_eq!(machine.cpus[0].physical, 0);
}

#[test]
fn a_trapped_deactivation_ends_what_no_list_register_holds() {
    let mut machine = Machine::open(1, 2);
    machine.write_private(0, 0, ISACTIVER, 0x1f);
    machine.send_sgi(0, sgi(9, 1));
    assert_eq!(machine.acknowledge(0), Some(9));
    for intid in 0..5 {
        machine.deactivate(0, intid);
    }
    assert_eq!(machine.read_private(0, 0, ISACTIVER), 1 << 9);
    machine.deactivate(0, 1023);
}

#[test]
fn a_vcpu_that_polls_another_vcpus_state_converges() {
    let mut machine = Machine::open(2, 4);
    set_route(&mut machine, 0, 32, 1);
    machine.write(0, ISPENDR + 4, 1);
    assert_eq!(machine.acknowledge(1), Some(32));
    machine.read(0, ISACTIVER + 4);
    assert_eq!(machine.read(0, ISACTIVER + 4), 1);
    assert_eq!(machine.read(0, ISPENDR + 4), 0);
    machine.end(1);
    machine.read(0, ISACTIVER + 4);
    assert_eq!(machine.read(0, ISACTIVER + 4), 0);
}

#[test]
fn unloading_hands_the_physical_timers_over_and_loading_takes_them_back() {
    let mut machine = Machine::open(1, 4);
    machine.set_timer(0, 27, true);
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.set_timer(0, 30, true);
    machine.unload(0);
    assert!(machine.gic.has_pending(0, &machine.cpus[0]));
    machine.load(0);
    assert_eq!(machine.cpus[0].physical, 1 << 27 | 1 << 26);
    machine.set_timer(0, 27, false);
    machine.end(0);
    assert_eq!(machine.acknowledge(0), Some(30));
}

#[test]
fn reset_forgets_everything_but_the_shape() {
    let mut machine = Machine::open(2, 4);
    machine.set_line(33, true);
    machine.unload(0);
    machine.unload(1);
    machine.gic.reset();
    assert!(!machine.gic.has_pending(0, &machine.cpus[0]));
    machine.load(1);
    assert_eq!(machine.read(1, 0), 0x50);
    assert_eq!(machine.access_private(1, 1 << 17 | 8, Access::Read(Width::Double)) >> 32, 1);
}

#[test]
fn a_controller_is_small_enough_to_keep_for_each_vm() {
    assert!(size_of::<Gicv3>() < 16 * 1024);
}
