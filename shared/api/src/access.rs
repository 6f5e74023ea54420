//! Who may do what: pure decisions over static lists, named as Kuma's `access.static`.
//!
//! Kuma lets anybody write policies and only guards secrets. Here every request but the open ones needs a grant,
//! and the defaults are: administrators do everything, other authenticated users read all but secrets.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The administrators' user and group, as in Kuma.
pub const ADMIN: &str = "mesh-system:admin";
/// Every user with a valid token is in this group.
pub const AUTHENTICATED: &str = "mesh-system:authenticated";
/// Requests without credentials are of this group.
pub const UNAUTHENTICATED: &str = "mesh-system:unauthenticated";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// The bearer of a user token.
    #[must_use]
    pub fn authenticated(name: impl Into<String>, mut groups: Vec<String>) -> Self {
        // Nobody gets these by claim.
        groups.retain(|g| g != AUTHENTICATED && g != UNAUTHENTICATED);
        groups.push(AUTHENTICATED.to_owned());
        Self { name: name.into(), groups }
    }

    /// No credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: "mesh-system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()] }
    }

    /// A process on this host, where [`Access::local_is_admin`] is on.
    #[must_use]
    pub fn local() -> Self {
        Self::authenticated(ADMIN, vec![ADMIN.to_owned()])
    }

    /// Without credentials.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.groups.iter().any(|g| g == UNAUTHENTICATED)
    }
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read resources (but secrets), overviews, denials.
    Read,
    /// Read secrets.
    ReadSecrets,
    /// Create, change and delete resources, secrets too.
    Write,
    /// Revoke a zone, rotate a CA, accept another global.
    Operate,
    GenerateDataplaneToken,
    GenerateZoneToken,
    GenerateUserToken,
    /// `/config`.
    ViewConfig,
}

/// Users and groups to whom something is granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Grant {
    pub users: Vec<String>,
    pub groups: Vec<String>,
}

impl Grant {
    fn to(group: &str) -> Self {
        Self { users: Vec::new(), groups: vec![group.to_owned()] }
    }

    fn covers(&self, user: &User) -> bool {
        self.users.contains(&user.name) || self.groups.iter().any(|g| user.groups.contains(g))
    }
}

/// Kuma's `access.static`, and what Kuma has no list for: `read`, `write`, `operate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Access {
    /// Reading secrets.
    pub admin_resources: Grant,
    pub generate_dp_token: Grant,
    pub generate_user_token: Grant,
    pub generate_zone_token: Grant,
    /// `/config`.
    pub control_plane_metadata: Grant,
    /// Reading all but secrets.
    pub read: Grant,
    /// Writing resources, secrets included.
    pub write: Grant,
    /// Revoking zones, rotating CAs, accepting another global.
    pub operate: Grant,
    /// Whoever connects from a loopback address without credentials is an administrator (Kuma's
    /// `apiServer.authn.localhostIsAdmin`, which is on there and off here).
    pub local_is_admin: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            admin_resources: Grant::to(ADMIN),
            generate_dp_token: Grant::to(ADMIN),
            generate_user_token: Grant::to(ADMIN),
            generate_zone_token: Grant::to(ADMIN),
            control_plane_metadata: Grant::to(AUTHENTICATED),
            read: Grant::to(AUTHENTICATED),
            write: Grant::to(ADMIN),
            operate: Grant::to(ADMIN),
            local_is_admin: false,
        }
    }
}

/// The user may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("This needs credentials: send a user token as `Authorization: Bearer TOKEN`")]
    NoCredentials,
    #[error("User {user:?} of groups [{groups}] may not {action}")]
    NotGranted { user: String, groups: String, action: &'static str },
}

impl Access {
    /// Whether `user` may do `action`.
    pub fn check(&self, user: &User, action: Action) -> Result<(), Denied> {
        let (grant, words) = match action {
            Action::Read => (&self.read, "read resources"),
            Action::ReadSecrets => (&self.admin_resources, "read secrets"),
            Action::Write => (&self.write, "write resources"),
            Action::Operate => (&self.operate, "operate the mesh"),
            Action::GenerateDataplaneToken => (&self.generate_dp_token, "generate dataplane tokens"),
            Action::GenerateZoneToken => (&self.generate_zone_token, "generate zone tokens"),
            Action::GenerateUserToken => (&self.generate_user_token, "generate user tokens"),
            Action::ViewConfig => (&self.control_plane_metadata, "view the configuration"),
        };
        if grant.covers(user) {
            Ok(())
        } else if user.is_anonymous() {
            Err(Denied::NoCredentials)
        } else {
            Err(Denied::NotGranted { user: user.name.clone(), groups: user.groups.join(", "), action: words })
        }
    }

    /// Who a request without credentials is.
    #[must_use]
    pub fn without_credentials(&self, peer: IpAddr) -> User {
        if self.local_is_admin && peer.to_canonical().is_loopback() {
            User::local()
        } else {
            User::anonymous()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Action; 8] = [
        Action::Read,
        Action::ReadSecrets,
        Action::Write,
        Action::Operate,
        Action::GenerateDataplaneToken,
        Action::GenerateZoneToken,
        Action::GenerateUserToken,
        Action::ViewConfig,
    ];

    #[test]
    fn administrators_may_everything_and_other_users_read_all_but_secrets() {
        let access = Access::default();
        let admin = User::authenticated("jo", vec![ADMIN.to_owned()]);
        let user = User::authenticated("kim", vec!["team-a".to_owned()]);
        for action in ALL {
            assert_eq!(access.check(&admin, action), Ok(()), "{action:?}");
            let readable = matches!(action, Action::Read | Action::ViewConfig);
            assert_eq!(access.check(&user, action).is_ok(), readable, "{action:?}");
            assert_eq!(access.check(&User::anonymous(), action), Err(Denied::NoCredentials), "{action:?}");
        }
    }

    #[test]
    fn the_user_named_admin_is_not_one_without_the_group() {
        let impostor = User::authenticated(ADMIN, vec![]);
        assert!(Access::default().check(&impostor, Action::Write).is_err());
    }

    #[test]
    fn nobody_is_admin_for_being_local_unless_configured() {
        let mut access = Access::default();
        let local = IpAddr::from([127, 0, 0, 1]);
        assert!(access.without_credentials(local).is_anonymous());
        access.local_is_admin = true;
        assert_eq!(access.check(&access.without_credentials(local), Action::Write), Ok(()));
        let mapped = IpAddr::from(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        assert!(!access.without_credentials(mapped).is_anonymous());
        assert!(access.without_credentials(IpAddr::from([192, 0, 2, 1])).is_anonymous());
    }

    #[test]
    fn system_groups_can_not_be_claimed() {
        let user = User::authenticated("eve", vec![UNAUTHENTICATED.to_owned()]);
        assert!(!user.is_anonymous());
    }

    #[test]
    fn lists_are_configurable_as_kumas() {
        let access: Access =
            serde_json::from_value(serde_json::json!({"generateDpToken": {"users": ["ci"], "groups": []}}))
                .unwrap();
        let ci = User::authenticated("ci", vec![]);
        assert_eq!(access.check(&ci, Action::GenerateDataplaneToken), Ok(()));
        assert!(access.check(&ci, Action::GenerateZoneToken).is_err());
        assert!(serde_json::from_value::<Access>(serde_json::json!({"generateDPToken": {}})).is_err());
    }
}
