//! Enums as Kuma's Go types have them: any text parses, so that a wrong value is one violation among others.

/// An enum over texts with an `Other` variant, which validation refuses: after a check it never occurs. Where a value
/// must be said, its default is `Other("")`.
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident, default $default:expr, { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($variant,)+
            /// Not one of Kuma's values; no resource that passed its check holds it.
            Other(String),
        }

        impl $name {
            pub const VALUES: &'static [&'static str] = &[$($text),+];

            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(text) => text,
                }
            }

            pub fn is_known(&self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl Default for $name {
            fn default() -> Self {
                $default
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                Ok(match text.as_str() {
                    $($text => Self::$variant,)+
                    _ => Self::Other(text),
                })
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                ::schemars::json_schema!({ "type": "string", "enum": Self::VALUES })
            }
        }
    };
}
pub(crate) use text_enum;

/// A protobuf enum: by name or number, anything else is a wrong type. Serialised by name.
macro_rules! proto_enum {
    ($(#[$doc:meta])* $name:ident, default $default:ident, { $($(#[$variant_doc:meta])* $variant:ident = $number:literal $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            pub const VALUES: &'static [&'static str] = &[$($text),+];
            pub(crate) const NUMBERS: &'static [u64] = &[$($number),+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(::serde::Deserialize)]
                #[serde(untagged)]
                enum Form {
                    Number(u64),
                    Text(String),
                }
                let form = <Form as ::serde::Deserialize>::deserialize(deserializer)?;
                match form {
                    $(Form::Number($number) => Ok(Self::$variant),)+
                    Form::Text(text) => match text.as_str() {
                        $($text => Ok(Self::$variant),)+
                        _ => Err(::serde::de::Error::unknown_variant(&text, Self::VALUES)),
                    },
                    Form::Number(number) => {
                        let unexpected = ::serde::de::Unexpected::Unsigned(number);
                        Err(::serde::de::Error::invalid_value(unexpected, &stringify!($name)))
                    }
                }
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                let mut values: Vec<::serde_json::Value> = Vec::new();
                for (text, number) in Self::VALUES.iter().zip(Self::NUMBERS) {
                    values.push((*text).into());
                    values.push((*number).into());
                }
                ::schemars::json_schema!({ "enum": values })
            }
        }
    };
}
pub(crate) use proto_enum;
