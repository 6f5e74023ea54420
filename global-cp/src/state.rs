//! What the parts of one replica share.

use crate::config::Settings;
use crate::questions::Questions;
use crate::tls::ServerCertificate;
use crate::tokens::Tokens;
use crate::world::World;
use crate::zones::Zones;
use meridian_delta::Node;
use meridian_pki::ZoneCa;
use meridian_pki::link::ZoneClients;
use meridian_store::Store;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// One replica.
pub(crate) struct Global {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    /// UUID of this process: also its name beside the status that it writes.
    pub(crate) replica: String,
    /// Start of this process, milliseconds since 1970.
    pub(crate) epoch: u64,
    world: Mutex<World>,
    pub(crate) tokens: Tokens,
    pub(crate) zones: Zones,
    pub(crate) questions: Questions,
    pub(crate) zone_ca: ZoneCa,
    pub(crate) zone_clients: ZoneClients,
    pub(crate) server: ServerCertificate,
    /// Something happened that a root's rotation may wait for.
    pub(crate) rotation_news: Notify,
}

impl Global {
    #[expect(clippy::too_many_arguments, reason = "the one place where the parts meet")]
    pub(crate) fn new(
        store: Store,
        settings: Settings,
        replica: String,
        epoch: u64,
        world: World,
        zone_ca: ZoneCa,
        zone_clients: ZoneClients,
        server: ServerCertificate,
    ) -> Self {
        let tokens = Tokens::default();
        tokens.rebuild(&world);
        Self {
            store,
            settings,
            replica,
            epoch,
            world: Mutex::new(world),
            tokens,
            zones: Zones::default(),
            questions: Questions::default(),
            zone_ca,
            zone_clients,
            server,
            rotation_news: Notify::new(),
        }
    }

    /// The world; nothing is awaited while it is held.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process, in hellos.
    pub(crate) fn node(&self) -> Node {
        Node {
            name: "global".to_owned(),
            instance: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch,
            take_over: false,
        }
    }
}
