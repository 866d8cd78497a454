//! Seconds since 1970 and the fields of the Gregorian calendar, and their digits in the clock's registers.

pub(super) const DAY_S: i64 = 86_400;
/// Days from 0000-03-01, with which a year of the calculation begins, to 1970-01-01.
const DAYS_BEFORE_1970: i64 = 719_468;
/// Days of 400, 100, 4 years and 1 year; leap days come last.
const DAYS_400: i64 = 146_097;
const DAYS_100: i64 = 36_524;
const DAYS_4: i64 = 1_461;
const DAYS_1: i64 = 365;

/// A date and a time of day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31; what the month does not have is in the next one.
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

impl Moment {
    pub(super) fn seconds(self) -> i64 {
        let (year, month) =
            if self.month > 2 { (self.year, self.month - 3) } else { (self.year - 1, self.month + 9) };
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let days = DAYS_1 * year + leap_days + days_before_month(month) + self.day - 1 - DAYS_BEFORE_1970;
        days * DAY_S + self.hour * 3600 + self.minute * 60 + self.second
    }

    pub(super) fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY_S) + DAYS_BEFORE_1970;
        let (year, day_of_year) = year_of(days);
        let month = (5 * day_of_year + 2) / 153;
        let time = seconds.rem_euclid(DAY_S);
        Self {
            year: if month < 10 { year } else { year + 1 },
            month: if month < 10 { month + 3 } else { month - 9 },
            day: day_of_year - days_before_month(month) + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }
}

/// 0 for a Sunday.
pub(super) fn weekday(seconds: i64) -> i64 {
    // 1970 began on a Thursday.
    (seconds.div_euclid(DAY_S) + 4).rem_euclid(7)
}

/// Days of a year that begins in March before its month `month`, from 0: 31, 30, 31, 30, 31 repeat every 153 days.
const fn days_before_month(month: i64) -> i64 {
    (153 * month + 2) / 5
}

/// The year, beginning in March, and the day in it, from 0.
fn year_of(days: i64) -> (i64, i64) {
    let mut rest = days.rem_euclid(DAYS_400);
    let mut year = days.div_euclid(DAYS_400) * 400;
    for (length, years, most) in [(DAYS_100, 100, 3), (DAYS_4, 4, 24), (DAYS_1, 1, 3)] {
        let count = (rest / length).min(most);
        year += count * years;
        rest -= count * length;
    }
    (year, rest)
}

/// How registers show numbers and hours: register B's DM and 24/12 (MC146818, "Register B").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Style {
    pub(super) is_binary: bool,
    pub(super) has_24_hours: bool,
}

const AFTERNOON: u8 = 1 << 7;

impl Style {
    /// The last two decimal digits of `value`.
    pub(super) fn number(self, value: i64) -> u8 {
        let [value, ..] = value.rem_euclid(100).to_le_bytes();
        if self.is_binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    pub(super) fn value(self, register: u8) -> i64 {
        let [tens, ones] = [register >> 4, register & 0xf].map(i64::from);
        if self.is_binary { i64::from(register) } else { tens * 10 + ones }
    }

    pub(super) fn hour(self, hour: i64) -> u8 {
        if self.has_24_hours {
            return self.number(hour);
        }
        let on_the_face = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.number(on_the_face) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    pub(super) fn hour_value(self, register: u8) -> i64 {
        if self.has_24_hours {
            return self.value(register);
        }
        let on_the_face = self.value(register & !AFTERNOON) % 12;
        if register & AFTERNOON == 0 { on_the_face } else { on_the_face + 12 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_have_their_seconds() {
        let table = [
            (0, 1970, 1, 1, 4),
            (951_782_400, 2000, 2, 29, 2),
            (1_709_164_800, 2024, 2, 29, 4),
            (4_107_542_400, 2100, 3, 1, 1),
            (-62_167_219_200, 0, 1, 1, 6),
            (253_402_214_400, 9999, 12, 31, 5),
        ];
        for (seconds, year, month, day, of_week) in table {
            let moment = Moment { year, month, day, hour: 0, minute: 0, second: 0 };
            assert_eq!(moment.seconds(), seconds, "{moment:?}");
            assert_eq!(Moment::from_seconds(seconds), moment);
            assert_eq!(weekday(seconds), of_week, "{moment:?}");
        }
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut last = Moment::from_seconds(-100 * DAYS_1 * DAY_S);
        for day in -100 * DAYS_1 + 1..500 * DAYS_1 {
            let next = Moment::from_seconds(day * DAY_S);
            let is_next_day = (next.year, next.month, next.day) == (last.year, last.month, last.day + 1);
            let is_next_month = (next.year, next.month, next.day) == (last.year, last.month + 1, 1);
            let is_next_year = (next.year, next.month, next.day) == (last.year + 1, 1, 1) && last.month == 12;
            assert!(is_next_day || is_next_month && last.day >= 28 || is_next_year, "{last:?} {next:?}");
            last = next;
        }
    }

    #[test]
    fn hours_on_a_face_of_twelve_begin_with_twelve() {
        let face = Style { is_binary: false, has_24_hours: false };
        for (hour, register) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            assert_eq!((face.hour(hour), face.hour_value(register)), (register, hour));
        }
    }

    proptest! {
        #[test]
        fn seconds_and_fields_are_inverse(seconds in -62_167_219_200i64..253_402_300_800) {
            prop_assert_eq!(Moment::from_seconds(seconds).seconds(), seconds);
        }

        #[test]
        fn numbers_and_registers_are_inverse(value in 0i64..100, is_binary: bool) {
            let style = Style { is_binary, has_24_hours: true };
            prop_assert_eq!(style.value(style.number(value)), value);
        }
    }
}
