use meridian_core::{Key, Resource, labels, names};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What selection and order know of a resource: its key and its labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta<'a> {
    pub(crate) key: &'a Key,
    pub(crate) labels: &'a BTreeMap<String, String>,
}

/// Whose a policy is, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    System,
    /// Written beside the service that it is about; holds for clients everywhere.
    Producer,
    /// Written beside clients.
    Consumer,
    WorkloadOwner,
}

/// Where a policy was written, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Global,
    Unknown,
    Zone,
}

impl<'a> From<&'a Resource> for Meta<'a> {
    fn from(resource: &'a Resource) -> Self {
        Self { key: &resource.key, labels: &resource.labels }
    }
}

impl<'a> Meta<'a> {
    /// The name under which it was written.
    pub(crate) fn display(self) -> &'a str {
        names::display(&self.key.name, self.labels)
    }

    /// The zone where it was written, or empty.
    pub(crate) fn zone(self) -> &'a str {
        if self.key.zone.is_empty() { self.text(labels::ZONE) } else { &self.key.zone }
    }

    pub(crate) fn namespace(self) -> &'a str {
        self.text(labels::NAMESPACE)
    }

    /// A label, of which some say what the key says.
    pub(crate) fn label(self, name: &str) -> Option<&'a str> {
        match name {
            labels::DISPLAY_NAME => Some(self.display()),
            labels::MESH => Some(&self.key.mesh),
            labels::ZONE => Some(self.zone()),
            _ => self.labels.get(name).map(String::as_str),
        }
    }

    pub(crate) fn has_labels(self, wanted: Option<&BTreeMap<String, String>>) -> bool {
        wanted.into_iter().flatten().all(|(name, value)| self.label(name) == Some(value))
    }

    pub(crate) fn role(self) -> Role {
        match self.text(labels::POLICY_ROLE) {
            labels::ROLE_PRODUCER => Role::Producer,
            labels::ROLE_CONSUMER => Role::Consumer,
            labels::ROLE_WORKLOAD_OWNER => Role::WorkloadOwner,
            _ => Role::System,
        }
    }

    pub(crate) fn origin(self) -> Origin {
        match self.text(labels::ORIGIN) {
            labels::ORIGIN_GLOBAL => Origin::Global,
            labels::ORIGIN_ZONE => Origin::Zone,
            _ => Origin::Unknown,
        }
    }

    /// The last word of the order: the alphabetically first is the strongest.
    pub(crate) fn order(self) -> Reverse<(String, Key)> {
        Reverse((self.display().to_owned(), self.key.clone()))
    }

    /// Such policies hold for the workloads of their namespace only.
    pub(crate) fn is_for_namespace(self) -> bool {
        self.role() >= Role::Consumer
    }

    /// Whether the policy is only tried out.
    pub(crate) fn is_shadow(self) -> bool {
        self.text(labels::EFFECT) == labels::EFFECT_SHADOW
    }

    fn text(self, label: &str) -> &'a str {
        self.labels.get(label).map_or("", String::as_str)
    }
}

/// The policy as it would be in force, if it is only tried out; `None` of one that is in force.
pub fn as_in_force(policy: &Resource) -> Option<Resource> {
    Meta::from(policy).is_shadow().then(|| {
        let mut policy = policy.clone();
        policy.labels.remove(labels::EFFECT);
        policy
    })
}

/// Kuma's resource identifier: `kri_<short name>_<mesh>_<zone>_<namespace>_<name>_<section>`.
pub fn kri(resource: &Resource, section: &str) -> String {
    let meta = Meta::from(resource);
    let short = resource.key.kind.info().short;
    let (mesh, zone, namespace) = (&resource.key.mesh, meta.zone(), meta.namespace());
    format!("kri_{short}_{mesh}_{zone}_{namespace}_{}_{section}", meta.display())
}
