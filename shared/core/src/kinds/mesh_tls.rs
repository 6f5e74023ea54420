use super::policy::{self, Lists, ONLY_MESH, PlainRule, Targeted};
use crate::check::NOT_SUPPORTED;
use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the selected proxies ask of connections that come in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshTls {
    /// The proxies called. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Targeted<Conf>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<PlainRule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Between the mesh's proxies. Unset: TLS 1.3 alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_version: Option<TlsVersions>,
    /// Of TLS 1.2, where that is spoken. Unset: all. Whether a name says `RSA` or `ECDSA` makes no difference: the mesh's
    /// certificates are of ECDSA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ciphers: Option<Vec<TlsCipher>>,
}

text_enum! {
    /// Whether plaintext is taken beside TLS.
    Mode, default Mode::Strict, {
        Permissive = "Permissive",
        Strict = "Strict",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsVersions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<TlsVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<TlsVersion>,
}

text_enum! {
    /// A version of TLS.
    TlsVersion, default TlsVersion::Auto, {
        Auto = "TLSAuto",
        Tls10 = "TLS10",
        Tls11 = "TLS11",
        Tls12 = "TLS12",
        Tls13 = "TLS13",
    }
}

text_enum! {
    /// A cipher suite of TLS 1.2.
    TlsCipher, default TlsCipher::Other(String::new()), {
        EcdsaAes128 = "ECDHE-ECDSA-AES128-GCM-SHA256",
        EcdsaAes256 = "ECDHE-ECDSA-AES256-GCM-SHA384",
        EcdsaChaCha20 = "ECDHE-ECDSA-CHACHA20-POLY1305",
        RsaAes128 = "ECDHE-RSA-AES128-GCM-SHA256",
        RsaAes256 = "ECDHE-RSA-AES256-GCM-SHA384",
        RsaChaCha20 = "ECDHE-RSA-CHACHA20-POLY1305",
    }
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshtlses",
    short: "mtls",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: false, rules: true }),
    doc: "What the selected proxies ask of connections that come in.",
    fields: &[("targetRef", Executed), ("from", Executed), ("rules", Executed)],
    ..KindInfo::new::<MeshTls>()
};

impl MeshTls {
    pub const KIND: Kind = Kind::new("MeshTLS");
}

impl Spec for MeshTls {
    const KIND: Kind = MeshTls::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let none: Option<&Vec<Targeted<Conf>>> = None;
        let lists = Lists::new(self.from.as_ref(), none, self.rules.as_ref());
        let top = self.target_ref.as_ref();
        policy::check_top(top, &policy::TOP, lists.inbound(), out);
        if lists.from && lists.rules {
            out.push("spec", "field 'from' must be empty when 'rules' is defined");
        }
        let of_mesh = policy::top_kind(top) == TargetKind::Mesh;
        policy::check_targets("from", self.from.as_ref(), &ONLY_MESH, out, |conf, path, out| {
            conf.check(path, of_mesh, out);
        });
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            rule.default.check(&format!("spec.rules[{i}].default"), of_mesh, out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        let of_from = self.from.iter().flatten().map(|item| &item.default);
        let of_rules = self.rules.iter().flatten().map(|rule| &rule.default);
        let all: Vec<&Conf> = of_from.chain(of_rules).collect();
        if all.iter().any(|conf| conf.mode == Some(Mode::Permissive)) {
            out.push("mode Permissive: permissions do not cover callers without a certificate".into());
        }
        let older = [Some(TlsVersion::Tls10), Some(TlsVersion::Tls11)];
        if all.iter().filter_map(|conf| conf.tls_version.as_ref()).any(|it| older.contains(&it.min)) {
            out.push("tlsVersion.min: TLS 1.2 is the lowest version that is spoken".into());
        }
    }
}

impl Conf {
    fn check(&self, path: &str, of_mesh: bool, out: &mut Violations) {
        if let Some(versions) = &self.tls_version {
            let path = format!("{path}.tlsVersion");
            if of_mesh {
                versions.check(&path, out);
            } else {
                out.push(path, "tlsVersion can only be defined with top level targetRef kind: Mesh");
            }
        }
        if let Some(ciphers) = &self.tls_ciphers {
            let path = format!("{path}.tlsCiphers");
            if !of_mesh {
                out.push(path.as_str(), "tlsCiphers can only be defined with top level targetRef kind: Mesh");
            }
            for (i, cipher) in ciphers.iter().enumerate().filter(|_| of_mesh) {
                if !cipher.is_known() {
                    out.push(format!("{path}[{i}]"), validate::one_of("tlsCiphers", TlsCipher::VALUES));
                }
            }
        }
        if self.mode.as_ref().is_some_and(|mode| !mode.is_known()) {
            out.push(format!("{path}.mode"), validate::one_of("mode", Mode::VALUES));
        }
    }
}

impl TlsVersions {
    fn check(&self, path: &str, out: &mut Violations) {
        for (name, version) in [("min", &self.min), ("max", &self.max)] {
            if version.as_ref().is_some_and(|version| !version.is_known()) {
                out.push(format!("{path}.{name}"), validate::one_of(name, TlsVersion::VALUES));
            }
        }
        if matches!(self.max, Some(TlsVersion::Tls10 | TlsVersion::Tls11)) {
            out.push(
                format!("{path}.max"),
                format!("{NOT_SUPPORTED}: TLS 1.2 is the lowest version that is spoken"),
            );
        }
        let named =
            |version: &Option<TlsVersion>| version.clone().filter(|version| *version != TlsVersion::Auto);
        if let (Some(min), Some(max)) = (named(&self.min), named(&self.max))
            && min.is_known()
            && max.is_known()
            && min > max
        {
            out.push(format!("{path}.min"), "min version must be lower than max");
        }
    }
}
