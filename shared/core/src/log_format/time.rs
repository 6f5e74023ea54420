use super::FormatError;

/// How a time is written: strftime's letters, in UTC, and Envoy's `%3f` for parts of a second. Empty: `2026-11-27T01:02:03.456Z`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeFormat(pub Vec<TimePiece>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePiece {
    Text(String),
    Year,
    YearOfCentury,
    Month,
    MonthName,
    MonthShort,
    Day,
    DayPadded,
    DayOfYear,
    Weekday,
    WeekdayShort,
    Hour,
    Hour12,
    HalfDay,
    Minute,
    Second,
    /// Seconds since 1970.
    Unix,
    /// So many digits of the second's fraction: 1 to 9.
    Fraction(u8),
}

use TimePiece::{
    Day, DayOfYear, DayPadded, Fraction, HalfDay, Hour, Hour12, Minute, Month, MonthName, MonthShort, Second,
    Unix, Weekday, WeekdayShort, Year, YearOfCentury,
};

impl TimeFormat {
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let mut format = Self::default();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            if letter == '%' {
                format.conversion(&mut letters)?;
            } else {
                format.text(letter.encode_utf8(&mut [0; 4]));
            }
        }
        Ok(format)
    }

    fn conversion(&mut self, letters: &mut std::str::Chars<'_>) -> Result<(), FormatError> {
        let letter = letters.next();
        if let Some(digits @ '1'..='9') = letter {
            let after = letters.next();
            let count = digits.to_digit(10).and_then(|digits| u8::try_from(digits).ok());
            return match (after, count) {
                (Some('f'), Some(count)) => {
                    self.0.push(Fraction(count));
                    Ok(())
                }
                _ => Err(FormatError::Time(letter.into_iter().chain(after).collect())),
            };
        }
        match letter {
            Some('%') => self.text("%"),
            Some('n') => self.text("\n"),
            Some('t') => self.text("\t"),
            Some('Z') => self.text("UTC"),
            Some('z') => self.text("+0000"),
            Some('F') => self.date('-', &[Year, Month, Day]),
            Some('D') => self.date('/', &[Month, Day, YearOfCentury]),
            Some('T') => self.date(':', &[Hour, Minute, Second]),
            Some('R') => self.date(':', &[Hour, Minute]),
            _ => {
                let piece = letter.and_then(piece);
                self.0.push(piece.ok_or_else(|| FormatError::Time(letter.into_iter().collect()))?);
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(TimePiece::Text(last)) => last.push_str(text),
            _ => self.0.push(TimePiece::Text(text.to_owned())),
        }
    }

    fn date(&mut self, between: char, pieces: &[TimePiece]) {
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                self.text(between.encode_utf8(&mut [0; 4]));
            }
            self.0.push(piece.clone());
        }
    }
}

fn piece(letter: char) -> Option<TimePiece> {
    Some(match letter {
        'Y' => Year,
        'y' => YearOfCentury,
        'm' => Month,
        'B' => MonthName,
        'b' | 'h' => MonthShort,
        'd' => Day,
        'e' => DayPadded,
        'j' => DayOfYear,
        'A' => Weekday,
        'a' => WeekdayShort,
        'H' => Hour,
        'I' => Hour12,
        'p' => HalfDay,
        'M' => Minute,
        'S' => Second,
        's' => Unix,
        'f' => Fraction(9),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_their_shorthands() {
        let of = |text: &str| TimeFormat::parse(text).unwrap().0;
        let text = |text: &str| TimePiece::Text(text.to_owned());
        assert_eq!(of(""), []);
        assert_eq!(of("%F"), of("%Y-%m-%d"));
        assert_eq!(of("%T.%3f%z"), [of("%H:%M:%S"), vec![text("."), Fraction(3), text("+0000")]].concat());
        assert_eq!(of("at %s%%"), [text("at "), Unix, text("%")]);
        for wrong in ["%", "%Q", "%3", "%3d"] {
            assert!(TimeFormat::parse(wrong).is_err(), "{wrong}");
        }
    }
}
