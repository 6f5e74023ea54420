use super::policy::{self, Lists, Rule, Targeted};
use crate::duration::PolicyDuration;
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{self, MUST_BE_DEFINED, NUMBER_EXPECTED};
use crate::{
    Context, Flow, IntOrString, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Faults that the selected proxies make, to see how callers bear them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshFaultInjection {
    /// The proxies that make them. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For calls that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Targeted<Conf>>>,
    /// Of builtin gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
    /// For calls that come in, by caller: the faults of each that matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// One after the other; whether each happens is drawn anew for every request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Vec<Fault>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Fault {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_bandwidth: Option<ResponseBandwidth>,
}

/// The application is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Abort {
    /// 100 to 599.
    pub http_status: u32,
    /// Of requests. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
}

/// The application is asked later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Delay {
    pub value: PolicyDuration,
    /// Of requests. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
}

/// The application's answer is sent slowly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ResponseBandwidth {
    /// `10kbps`, `5 Mbps`, `1Gbps`; a `kbps` is 1,024 bytes a second, as Kuma's proxies take it.
    pub limit: String,
    /// Of requests. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshfaultinjections",
    short: "mfi",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: true, rules: true }),
    doc: "Faults that the selected proxies make, to see how callers bear them.",
    fields: &[
        ("targetRef", Executed),
        ("from", Executed),
        ("to", Warned(policy::NO_GATEWAYS)),
        ("rules", Executed),
    ],
    ..KindInfo::new::<MeshFaultInjection>()
};

const FROM: [TargetKind; 4] =
    [TargetKind::Mesh, TargetKind::MeshSubset, TargetKind::MeshService, TargetKind::MeshServiceSubset];

impl MeshFaultInjection {
    pub const KIND: Kind = Kind::new("MeshFaultInjection");
}

impl Spec for MeshFaultInjection {
    const KIND: Kind = MeshFaultInjection::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let lists = Lists::new(self.from.as_ref(), self.to.as_ref(), self.rules.as_ref());
        let top = self.target_ref.as_ref();
        policy::check_top(top, &policy::TOP, lists.inbound(), out);
        lists.check_exclusive(out);
        policy::check_rules(self.rules.as_ref(), out, |rule, path, out| rule.default.check(path, out));
        policy::check_sides(top, (self.from.as_ref(), &FROM), self.to.as_ref(), out, Conf::check);
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        for (i, item) in self.from.iter().flatten().enumerate() {
            let target = &item.target_ref;
            if target.kind == TargetKind::MeshService && target.name().is_none() {
                out.push(format!(
                    "spec.from[{i}] has no effect: callers are known by their kuma.io/service, and by their tags; name the service"
                ));
            }
        }
    }
}

impl Conf {
    fn check(&self, path: &str, out: &mut Violations) {
        for (i, fault) in self.http.iter().flatten().enumerate() {
            // Kuma's paths: the index stands behind the fault's name.
            if let Some(abort) = &fault.abort {
                let path = format!("{path}.http.abort[{i}]");
                validate::in_range(format!("{path}.httpStatus"), Some(abort.http_status), 100..=599, out);
                check_share(&path, abort.percentage.as_ref(), out);
            }
            if let Some(delay) = &fault.delay {
                let path = format!("{path}.http.delay[{i}]");
                validate::not_negative(&format!("{path}.value"), Some(delay.value), out);
                check_share(&path, delay.percentage.as_ref(), out);
            }
            if let Some(bandwidth) = &fault.response_bandwidth {
                let path = format!("{path}.http.responseBandwidth[{i}]");
                if bandwidth.limit.is_empty() {
                    out.push(format!("{path}.limit"), MUST_BE_DEFINED);
                } else if bandwidth.bytes_per_second().is_none() {
                    out.push(format!("{path}.limit"), "must be in kbps/Mbps/Gbps units");
                }
                check_share(&path, bandwidth.percentage.as_ref(), out);
            }
        }
    }
}

fn check_share(path: &str, percentage: Option<&IntOrString>, out: &mut Violations) {
    if let Some(percentage) = percentage {
        validate::percentage(&format!("{path}.percentage"), percentage, NUMBER_EXPECTED, out);
    }
}

impl ResponseBandwidth {
    /// `None`: the text is no bandwidth.
    pub fn bytes_per_second(&self) -> Option<u64> {
        /// Kuma hands the number on as thousands, and its proxies read that as KiB a second.
        const KIB: u64 = 1_024;
        let units = [("kbps", KIB), ("Mbps", 1_000 * KIB), ("Gbps", 1_000_000 * KIB)];
        let (number, unit) =
            units.iter().find_map(|(name, unit)| Some((self.limit.strip_suffix(name)?, unit)))?;
        let number = number.strip_suffix([' ', '\t']).unwrap_or(number);
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(*unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_a_number_and_a_unit() {
        let of = |limit: &str| ResponseBandwidth { limit: limit.into(), percentage: None }.bytes_per_second();
        assert_eq!(of("10kbps"), Some(10 * 1_024));
        assert_eq!(of("50 Mbps"), Some(50_000 * 1_024));
        assert_eq!(of("1Gbps"), Some(1_024_000_000));
        for wrong in ["", "kbps", "1000", "1 000kbps", "1  kbps", "+1kbps", "1.5Mbps", "1bps", "1kBps"] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
        assert_eq!(of("99999999999999999Gbps"), None);
    }
}
