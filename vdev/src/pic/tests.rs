//! The 8259 pair against its data sheet, and against random accesses.

use alloc::vec::Vec;
use proptest::prelude::*;

use super::*;
use crate::Width;

fn out(pics: &mut Pics, port: u16, value: u8) {
    assert!(pics.port(port, Access::Write(Width::Byte, value.into())).is_some());
}

fn input(pics: &mut Pics, port: u16) -> u64 {
    pics.port(port, Access::Read(Width::Byte)).unwrap()
}

/// As operating systems set the pair up: vectors from 0x30 and 0x38, fourth words as given, everything unmasked.
fn set_up(modes: [u8; 2]) -> Pics {
    let mut pics = Pics::new();
    for (port, vectors, wiring, mode) in [(0x20, 0x30, 4, modes[0]), (0xa0, 0x38, 2, modes[1])] {
        out(&mut pics, port, 0x11);
        out(&mut pics, port + 1, vectors);
        out(&mut pics, port + 1, wiring);
        out(&mut pics, port + 1, mode);
        out(&mut pics, port + 1, 0);
    }
    pics
}

fn ready() -> Pics {
    set_up([1, 1])
}

fn pulse(pics: &mut Pics, line: u8) {
    pics.set_line(line, true);
    pics.set_line(line, false);
}

/// Ends the highest in service of whom it concerns.
fn end(pics: &mut Pics, vector: u8) {
    if vector >= 0x38 {
        out(pics, 0xa0, 0x20);
    }
    out(pics, 0x20, 0x20);
}

fn drain(pics: &mut Pics) -> Vec<u8> {
    let mut taken = Vec::new();
    while pics.output() {
        let vector = pics.acknowledge();
        end(pics, vector);
        taken.push(vector);
    }
    taken
}

#[test]
fn each_input_has_its_vector() {
    let mut pics = ready();
    for line in (0..16).filter(|&line| line != 2) {
        assert!(!pics.output());
        pulse(&mut pics, line);
        assert_eq!(drain(&mut pics), [0x30 + line]);
    }
}

#[test]
fn the_order_is_that_of_the_inputs_with_the_second_in_place_of_input_2() {
    let mut pics = ready();
    for line in (0..16).rev() {
        pulse(&mut pics, line);
    }
    let order = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
    assert_eq!(drain(&mut pics), order.map(|line| 0x30 + line));
}

#[test]
fn what_is_in_service_holds_back_its_own_and_lower_ones() {
    let mut pics = ready();
    pulse(&mut pics, 4);
    assert_eq!(pics.acknowledge(), 0x34);
    for line in [4, 5, 7] {
        pulse(&mut pics, line);
        assert!(!pics.output());
    }
    pulse(&mut pics, 9);
    assert_eq!(pics.acknowledge(), 0x39);
    pulse(&mut pics, 1);
    assert_eq!(pics.acknowledge(), 0x31);
    out(&mut pics, 0x20, 0x20);
    assert!(!pics.output());
    end(&mut pics, 0x39);
    assert!(!pics.output());
    out(&mut pics, 0x20, 0x64);
    assert_eq!(drain(&mut pics), [0x34, 0x35, 0x37]);
}

#[test]
fn masked_requests_wait() {
    let mut pics = ready();
    out(&mut pics, 0x21, 0xff);
    pulse(&mut pics, 0);
    assert!(!pics.output());
    assert_eq!((input(&mut pics, 0x20), input(&mut pics, 0x21)), (1, 0xff));
    out(&mut pics, 0x21, 0xfe);
    assert_eq!(drain(&mut pics), [0x30]);
}

#[test]
fn an_acknowledge_of_nothing_is_a_spurious_input_7() {
    let mut pics = ready();
    assert_eq!(pics.acknowledge(), 0x37);
    out(&mut pics, 0x20, 0x0b);
    assert_eq!(input(&mut pics, 0x20), 0, "and not in service");
}

#[test]
fn the_status_is_requests_or_service() {
    let mut pics = ready();
    pulse(&mut pics, 3);
    pulse(&mut pics, 12);
    assert_eq!(input(&mut pics, 0x20), 0b1100);
    assert_eq!(input(&mut pics, 0xa0), 0b1_0000);
    assert_eq!(pics.acknowledge(), 0x3c);
    out(&mut pics, 0x20, 0x0b);
    out(&mut pics, 0xa0, 0x0b);
    assert_eq!((input(&mut pics, 0x20), input(&mut pics, 0xa0)), (0b100, 0b1_0000));
    out(&mut pics, 0x20, 0x0a);
    assert_eq!(input(&mut pics, 0x20), 0b1000);
}

#[test]
fn a_level_requests_as_long_as_it_lasts() {
    let mut pics = ready();
    out(&mut pics, 0x4d1, 1 << 2);
    pics.set_line(10, true);
    for _ in 0..3 {
        assert_eq!(pics.acknowledge(), 0x3a);
        end(&mut pics, 0x3a);
    }
    pics.set_line(10, false);
    assert!(!pics.output());
    pics.set_line(9, true);
    assert_eq!(drain(&mut pics), [0x39], "an edge does not");
}

#[test]
fn the_edge_level_registers_keep_what_a_pc_has_as_edges() {
    let mut pics = ready();
    for (port, kept) in [(0x4d0, 0xf8), (0x4d1, 0xde)] {
        out(&mut pics, port, 0xff);
        assert_eq!(input(&mut pics, port), kept);
    }
    assert_eq!(pics.port(0x4d0, Access::Read(Width::Half)), Some(0xdef8));
}

#[test]
fn automatic_end_leaves_nothing_in_service() {
    let mut pics = set_up([3, 1]);
    pulse(&mut pics, 4);
    pulse(&mut pics, 5);
    assert_eq!([pics.acknowledge(), pics.acknowledge()], [0x34, 0x35]);
    assert!(!pics.output());
    out(&mut pics, 0x20, 0x80);
    for line in [4, 5, 4] {
        pulse(&mut pics, line);
    }
    assert_eq!([pics.acknowledge(), pics.acknowledge()], [0x34, 0x35]);
    for line in [4, 6] {
        pulse(&mut pics, line);
    }
    assert_eq!([pics.acknowledge(), pics.acknowledge()], [0x36, 0x34], "rotated: 5 is the lowest");
}

#[test]
fn rotation_makes_what_ended_the_lowest() {
    let mut pics = ready();
    pulse(&mut pics, 4);
    assert_eq!(pics.acknowledge(), 0x34);
    out(&mut pics, 0x20, 0xa0);
    for line in [0, 4, 5] {
        pulse(&mut pics, line);
    }
    assert_eq!(drain(&mut pics), [0x35, 0x30, 0x34]);
    out(&mut pics, 0x20, 0xc0 | 6);
    for line in [0, 6, 7] {
        pulse(&mut pics, line);
    }
    assert_eq!(drain(&mut pics), [0x37, 0x30, 0x36]);
    pulse(&mut pics, 3);
    assert_eq!(pics.acknowledge(), 0x33);
    out(&mut pics, 0x20, 0xe0 | 3);
    for line in [3, 4] {
        pulse(&mut pics, line);
    }
    assert_eq!(drain(&mut pics), [0x34, 0x33]);
}

#[test]
fn the_special_mask_lets_lower_ones_through() {
    let mut pics = ready();
    pulse(&mut pics, 3);
    assert_eq!(pics.acknowledge(), 0x33);
    pulse(&mut pics, 6);
    out(&mut pics, 0x21, 1 << 3);
    assert!(!pics.output());
    out(&mut pics, 0x20, 0x68);
    assert_eq!(pics.acknowledge(), 0x36);
    out(&mut pics, 0x20, 0x20);
    out(&mut pics, 0x20, 0x0b);
    assert_eq!(input(&mut pics, 0x20), 1 << 3, "a plain end skips the masked one");
    out(&mut pics, 0x20, 0x48);
    pulse(&mut pics, 6);
    assert!(!pics.output());
}

#[test]
fn the_special_fully_nested_mode_lets_the_second_interrupt_itself() {
    for (mode, nests) in [(0x11, true), (0x01, false)] {
        let mut pics = set_up([mode, 1]);
        pulse(&mut pics, 12);
        assert_eq!(pics.acknowledge(), 0x3c);
        pulse(&mut pics, 5);
        assert!(!pics.output(), "a lower one of the first waits");
        pulse(&mut pics, 8);
        assert_eq!(pics.output(), nests);
        end(&mut pics, 0x3c);
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x31);
        assert!(!pics.output(), "nor does the second come in below");
    }
}

#[test]
fn a_poll_acknowledges() {
    let mut pics = ready();
    out(&mut pics, 0x20, 0x0c);
    assert_eq!(input(&mut pics, 0x20) & 0x80, 0);
    pulse(&mut pics, 5);
    out(&mut pics, 0x20, 0x0c);
    assert_eq!(input(&mut pics, 0x20), 0x85);
    assert!(!pics.output());
    out(&mut pics, 0x20, 0x0b);
    assert_eq!(input(&mut pics, 0x20), 1 << 5);
}

#[test]
fn initialisation_starts_over_but_for_levels() {
    let mut pics = ready();
    out(&mut pics, 0x4d0, 1 << 5);
    pics.set_line(5, true);
    pulse(&mut pics, 3);
    out(&mut pics, 0x21, 0xff);
    out(&mut pics, 0x20, 0x13);
    out(&mut pics, 0x21, 0x47);
    out(&mut pics, 0x21, 0x01);
    assert_eq!(input(&mut pics, 0x21), 0, "the mask; a single one has no third word");
    assert_eq!(pics.acknowledge(), 0x45, "the edge is gone, the level is not");
}

#[test]
fn all_inputs_are_levels_if_the_first_word_says_so() {
    let mut pics = Pics::new();
    for (port, value) in [(0x20, 0x1a), (0x21, 0x30)] {
        out(&mut pics, port, value);
    }
    pics.set_line(4, true);
    assert_eq!(pics.acknowledge(), 0x34);
    out(&mut pics, 0x20, 0x20);
    assert_eq!(pics.acknowledge(), 0x34);
}

#[test]
fn an_edge_outlives_its_line() {
    let mut pics = ready();
    pulse(&mut pics, 0);
    pulse(&mut pics, 0);
    assert_eq!(drain(&mut pics), [0x30], "and two that meet are one");
}

#[test]
fn other_ports_and_lines_are_nobodys() {
    let mut pics = ready();
    for port in [0x1f, 0x22, 0x9f, 0xa2, 0x4cf, 0x4d2, 0, u16::MAX] {
        assert!(!Pics::has(port));
        assert_eq!(pics.port(port, Access::Read(Width::Byte)), None);
    }
    for line in [2, 16, 255] {
        pics.set_line(line, true);
    }
    assert!(!pics.output());
}

proptest! {
    #[test]
    fn whatever_is_written_an_acknowledge_names_a_request_or_the_spurious_input(
        steps in prop::collection::vec((0u8..6, 0u16..6, any::<u8>()), 1..150),
    ) {
        let mut pics = Pics::new();
        for (what, port, value) in steps {
            let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(port)];
            match what {
                0 | 1 => out(&mut pics, port, value),
                2 => { let _ = input(&mut pics, port); }
                3 => { let _ = pics.port(port, Access::Write(Width::Double, u64::from(value) * 0x0101_0101)); }
                4 => pics.set_line(value & 0x1f, value & 0x80 != 0),
                _ => {
                    let requests = [0, 1].map(|index| pics.pair[index].requests());
                    let is_asked = pics.output();
                    let before = [0, 1].map(|index| pics.pair[index].vectors);
                    let vector = pics.acknowledge();
                    let input = vector & 7;
                    let own = vector & 0xf8 == before[0] && requests[0] >> input & 1 != 0;
                    let second = vector & 0xf8 == before[1] && requests[1] >> input & 1 != 0;
                    let is_right = if is_asked { own || second || input == 7 } else { vector == before[0] | 7 };
                    prop_assert!(is_right, "vector {:#x}", vector);
                }
            }
            let output = pics.pair[1].winner().is_some();
            prop_assert_eq!(pics.pair[0].lines >> CASCADE & 1 != 0, output, "the cascade follows");
        }
    }
}
