//! Who gets a message: destinations, shorthands and delivery modes.

use super::*;

const LOGICAL: u32 = 1 << 11;
const OWN: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;

#[test]
fn a_physical_destination_is_one_id_or_all() {
    let mut machine = enabled(4);
    assert_eq!(send(&mut machine[1], 3, 0x50), look(1 << 3));
    assert_eq!(takers(&mut machine, 0x50), 1 << 3);
    assert_eq!(send(&mut machine[1], 1, 0x50), Effect::Nothing);
    assert_eq!(takers(&mut machine, 0x50), 1 << 1);
    assert_eq!(send(&mut machine[1], 0xff, 0x50), look(0b1101));
    assert_eq!(takers(&mut machine, 0x50), 0b1111);
    for nobody in [4, 9, 31, 32, 0xfe] {
        assert_eq!(send(&mut machine[1], nobody, 0x50), Effect::Nothing);
    }
    assert_eq!(takers(&mut machine, 0x50), 0);
}

/// SDM Vol. 3A, table 11-3.
#[test]
fn shorthands_name_oneself_all_or_the_others() {
    let mut machine = enabled(3);
    for (shorthand, targets) in [(OWN, 0b010), (ALL, 0b111), (OTHERS, 0b101)] {
        let _ = send(&mut machine[1], 0, shorthand | 0x50);
        assert_eq!(takers(&mut machine, 0x50), targets);
    }
    for mode in [1, 2, 4, 5, 6] {
        for invalid in [OWN, ALL] {
            assert_eq!(send(&mut machine[1], 0, invalid | mode << 8 | 0x50), Effect::Nothing);
            assert_eq!(takers(&mut machine, 0x50), 0);
        }
    }
    assert_eq!(send(&mut machine[1], 0, OTHERS | 0x400), look(0b101));
    assert_eq!(send(&mut machine[1], 0, OTHERS | 0x500), Effect::SwitchOff(VcpuSet(0b101)));
    assert_eq!(send(&mut machine[1], 0, OTHERS | 0x612), Effect::Start(VcpuSet(0b101), 0x12));
}

#[test]
fn the_flat_model_selects_by_a_mask_of_eight() {
    let mut machine = enabled(4);
    for mask in 0..=0xff {
        let _ = send(&mut machine[0], mask, LOGICAL | 0x50);
        assert_eq!(takers(&mut machine, 0x50), mask & 0xf);
    }
}

/// SDM Vol. 3A, 11.6.2.2.
#[test]
fn the_cluster_model_selects_by_cluster_and_mask() {
    let mut machine = enabled(4);
    for (apic, id) in machine.iter_mut().zip([0x11, 0x12, 0x21, 0x22]) {
        let _ = apic.write(reg::DESTINATION_FORMAT, 0, 0);
        let _ = apic.write(reg::LOGICAL_DESTINATION, id << 24, 0);
    }
    let masks = [(0x11, 0b0001), (0x13, 0b0011), (0x2f, 0b1100), (0x31, 0), (0xf1, 0b0101), (0xff, 0b1111)];
    for (mask, targets) in masks {
        let _ = send(&mut machine[0], mask, LOGICAL | 0x50);
        assert_eq!(takers(&mut machine, 0x50), targets, "mask {mask:#x}");
    }
}

/// SDM Vol. 3A, 11.12.10.
#[test]
fn x2apic_destinations_are_32_bits_and_logical_ids_are_derived() {
    let mut machine = enabled_x2(4);
    let mut sent = |destination: u64, command: u64| {
        let _ = machine[0].write_x2apic(reg::COMMAND, destination << 32 | command | 0x50, 0).unwrap();
        takers(&mut machine, 0x50)
    };
    assert_eq!(sent(2, 0), 1 << 2);
    assert_eq!(sent(0x102, 0), 0, "not cut to eight bits");
    assert_eq!(sent(0xff, 0), 0, "no broadcast here");
    assert_eq!(sent(0xffff_ffff, 0), 0b1111);
    assert_eq!(sent(0x0000_0005, LOGICAL.into()), 0b0101);
    assert_eq!(sent(0x0001_0005, LOGICAL.into()), 0, "another cluster");
    assert_eq!(sent(0xffff_ffff, LOGICAL.into()), 0b1111);
}

#[test]
fn the_self_ipi_register_reaches_oneself() {
    let mut machine = enabled_x2(2);
    assert_eq!(machine[1].write_x2apic(reg::SELF_IPI, 0x50, 0), Ok(Effect::Nothing));
    assert_eq!(takers(&mut machine, 0x50), 2);
}

#[test]
fn a_lowest_priority_message_goes_to_exactly_one_that_accepts() {
    let mut machine = enabled(4);
    let _ = machine[2].write(reg::SPURIOUS, 0xff, 0);
    let mut seen = 0;
    for vector in 0x20..0xf0 {
        let to_all = message(Destination::Logical(0xff), Delivery::LowestPriority, vector, Trigger::Edge);
        let told = machine[0].apics().send(to_all).look;
        let taker = takers(&mut machine, vector);
        assert_eq!((told.0, taker.count_ones()), (taker, 1));
        seen |= taker;
    }
    assert_eq!(seen, 0b1011, "different vectors go to different vCPUs");
    let nobody = message(Destination::Physical(2), Delivery::LowestPriority, 0x50, Trigger::Edge);
    assert_eq!(machine[0].apics().send(nobody).look, VcpuSet::EMPTY);
    assert_eq!(send(&mut machine[0], 3, 0x150), look(1 << 3));
    assert_eq!(takers(&mut machine, 0x50), 1 << 3);
}

#[test]
fn nmi_init_and_start_up_reach_their_targets() {
    let mut machine = enabled(3);
    assert_eq!(send(&mut machine[0], 1, 0x400), look(2));
    assert!(machine[1].wakes() && machine[1].has_nmi() && !machine[2].wakes());
    assert_eq!(send(&mut machine[0], 0, 0x400), Effect::Nothing);
    assert!(machine[0].has_nmi());
    assert_eq!(send(&mut machine[0], 2, 0x4500), Effect::SwitchOff(VcpuSet(4)));
    assert_eq!(send(&mut machine[0], 2, 0xc500), Effect::SwitchOff(VcpuSet(4)));
    assert_eq!(send(&mut machine[0], 2, 0x8500), Effect::Nothing, "level de-assert");
    assert_eq!(send(&mut machine[0], 2, 0x4699), Effect::Start(VcpuSet(4), 0x99));
    assert_eq!(send(&mut machine[0], 7, 0x4699), Effect::Nothing);
    assert_eq!(send(&mut machine[0], 2, 0x200), Effect::Nothing, "no system management mode");
    assert_eq!(send(&mut machine[0], 2, 0x300), Effect::Nothing, "reserved");
    assert_eq!(send(&mut machine[0], 2, 0x750), Effect::Nothing, "not for a command register");
}

#[test]
fn after_init_no_interrupt_is_accepted_until_the_next_start() {
    let mut machine = enabled(3);
    assert_eq!(send(&mut machine[0], 2, 0x4500), Effect::SwitchOff(VcpuSet(4)));
    let apics = Arc::clone(machine[0].apics());
    for vector in 0x20..0xf0 {
        let lowest = message(Destination::All, Delivery::LowestPriority, vector, Trigger::Level);
        assert_eq!(apics.send(lowest).look.0 & 4, 0);
    }
    let level = message(Destination::Physical(2), Delivery::Fixed, 0x55, Trigger::Level);
    assert!(!apics.send(level).is_requested, "nobody would end it");
    assert_eq!(send(&mut machine[0], 2, 0x4612), Effect::Start(VcpuSet(4), 0x12));
    machine[2].init();
    machine[2].set_up_as_firmware_does();
    assert!(apics.send(level).is_requested);
}

#[test]
fn after_a_reset_of_the_vm_every_apic_can_be_started_and_none_accepts_interrupts() {
    let mut machine = enabled_x2(3);
    machine[1].set_base(0xfee0_0000).unwrap();
    let apics = Arc::clone(machine[0].apics());
    apics.reset();
    machine[0].reset();
    let _ = machine[0].write(reg::SPURIOUS, ENABLED, 0);
    for target in [1, 2] {
        assert_eq!(send(&mut machine[0], target, 0x4500), Effect::SwitchOff(VcpuSet(1 << target)));
        assert_eq!(send(&mut machine[0], target, 0x4612), Effect::Start(VcpuSet(1 << target), 0x12));
    }
    for vector in 0x20..0x30 {
        let lowest = message(Destination::All, Delivery::LowestPriority, vector, Trigger::Edge);
        assert_eq!(apics.send(lowest).look.0 & !1, 0, "nothing goes to one that is off");
    }
    let all = message(Destination::All, Delivery::Fixed, 0x55, Trigger::Edge);
    assert!(apics.send(all).is_requested && !machine[1].wakes() && !machine[2].wakes());
}

#[test]
fn a_disabled_apic_gets_nothing() {
    let mut machine = enabled(2);
    machine[1].set_base(0xfee0_0000).unwrap();
    for command in [0x50, 0x150, 0x400, 0x500, 0x612] {
        assert_eq!(send(&mut machine[0], 1, command), Effect::Nothing);
    }
    assert!(!machine[1].wakes());
}

#[test]
fn an_external_interrupt_by_message_waits_until_it_is_taken() {
    let mut machine = enabled(2);
    let external = message(Destination::Physical(1), Delivery::External, 0, Trigger::Edge);
    assert_eq!(machine[0].apics().send(external).look, VcpuSet(2));
    assert!(machine[1].wakes() && machine[1].has_external());
    machine[1].take_external();
    assert!(!machine[1].has_external());
}

#[test]
fn a_vcpu_is_told_once_of_each_word_until_it_absorbs() {
    let mut machine = enabled(2);
    assert_eq!(send(&mut machine[0], 1, 0x50), look(2));
    for vector in [0x50, 0x51] {
        assert_eq!(send(&mut machine[0], 1, vector), Effect::Nothing);
    }
    assert_eq!(send(&mut machine[0], 1, 0xf0), look(2));
    machine[1].absorb();
    for vector in [0xf0, 0x51, 0x50] {
        assert_eq!(machine[1].acknowledge(), vector);
        assert_eq!(machine[1].eoi(), None);
    }
    assert_eq!(send(&mut machine[0], 1, 0x50), look(2));
}
