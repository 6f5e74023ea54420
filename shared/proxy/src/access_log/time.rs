use meridian_core::log_format::{TimeFormat, TimePiece};
use std::fmt::{self, Write};
use time::OffsetDateTime;

/// Writes a time, in UTC.
pub(super) fn write(format: &TimeFormat, at: OffsetDateTime, out: &mut dyn Write) -> fmt::Result {
    if format.0.is_empty() {
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let (hour, minute, second, millis) = (at.hour(), at.minute(), at.second(), at.millisecond());
        return write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z");
    }
    format.0.iter().try_for_each(|piece| write_piece(piece, at, out))
}

fn write_piece(piece: &TimePiece, at: OffsetDateTime, out: &mut dyn Write) -> fmt::Result {
    let half_day = match at.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    match piece {
        TimePiece::Text(text) => out.write_str(text),
        TimePiece::Year => write!(out, "{:04}", at.year()),
        TimePiece::YearOfCentury => write!(out, "{:02}", at.year().rem_euclid(100)),
        TimePiece::Month => write!(out, "{:02}", u8::from(at.month())),
        TimePiece::MonthName => write!(out, "{}", at.month()),
        TimePiece::MonthShort => write!(out, "{:.3}", at.month().to_string()),
        TimePiece::Day => write!(out, "{:02}", at.day()),
        TimePiece::DayPadded => write!(out, "{:2}", at.day()),
        TimePiece::DayOfYear => write!(out, "{:03}", at.ordinal()),
        TimePiece::Weekday => write!(out, "{}", at.weekday()),
        TimePiece::WeekdayShort => write!(out, "{:.3}", at.weekday().to_string()),
        TimePiece::Hour => write!(out, "{:02}", at.hour()),
        TimePiece::Hour12 => write!(out, "{half_day:02}"),
        TimePiece::HalfDay => out.write_str(if at.hour() < 12 { "AM" } else { "PM" }),
        TimePiece::Minute => write!(out, "{:02}", at.minute()),
        TimePiece::Second => write!(out, "{:02}", at.second()),
        TimePiece::Unix => write!(out, "{}", at.unix_timestamp()),
        TimePiece::Fraction(digits) => {
            let unit = 10u32.pow(9u32.saturating_sub(u32::from(*digits)));
            write!(out, "{:0width$}", at.nanosecond() / unit, width = usize::from(*digits))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::log_format::{LogFormat, Operator, Piece};

    fn written(format: &str, at: OffsetDateTime) -> String {
        let pieces = LogFormat::parse(&format!("%START_TIME({format})%")).unwrap().pieces;
        let [Piece::Value(Operator::StartTime(format), None)] = pieces.as_slice() else {
            panic!("{pieces:?}")
        };
        let mut out = String::new();
        write(format, at, &mut out).unwrap();
        out
    }

    #[test]
    fn times_are_utc() {
        // 2026-03-05T04:07:09.012345678Z, a Thursday.
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_772_683_629_012_345_678).unwrap();
        for (format, expected) in [
            ("", "2026-03-05T04:07:09.012Z"),
            ("%F %T.%6f%z", "2026-03-05 04:07:09.012345+0000"),
            ("%a, %e %b %y %I:%M %p %Z", "Thu,  5 Mar 26 04:07 AM UTC"),
            ("%A %B %j", "Thursday March 064"),
            ("%s.%3f|%1f|%9f|%f", "1772683629.012|0|012345678|012345678"),
            ("%d/%m/%Y:%H %R %D", "05/03/2026:04 04:07 03/05/26"),
        ] {
            assert_eq!(written(format, at), expected, "{format}");
        }
        let afternoon = at + time::Duration::hours(20);
        assert_eq!(written("%I %p", afternoon), "12 AM");
        assert_eq!(written("%I %p", at + time::Duration::hours(8)), "12 PM");
    }
}
