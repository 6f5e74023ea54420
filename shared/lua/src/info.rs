//! What surrounds a message: `streamInfo()`, `connection()`, `metadata()`.

use crate::{Facts, exchange::Exchange, value::Data};
use mlua::{Lua, LuaString, Result, Table, UserDataMethods, UserDataRegistry, Value, Variadic};
use std::rc::Rc;

pub(crate) struct StreamInfo(pub(crate) Rc<Exchange>);
pub(crate) struct Connection(pub(crate) Rc<Exchange>);
pub(crate) struct Ssl(pub(crate) Rc<Exchange>);
pub(crate) struct DynamicMetadata(pub(crate) Rc<Exchange>);
/// Of the route: there is none.
pub(crate) struct Metadata;

type ReadFact = fn(&Facts) -> &str;

pub(crate) fn register_stream_info(registry: &mut UserDataRegistry<StreamInfo>) {
    let facts: [(&str, ReadFact); 7] = [
        ("protocol", |facts| facts.protocol),
        ("requestedServerName", |facts| &facts.server_name),
        ("downstreamLocalAddress", |facts| &facts.local),
        ("downstreamDirectLocalAddress", |facts| &facts.local),
        ("downstreamRemoteAddress", |facts| &facts.remote),
        ("downstreamDirectRemoteAddress", |facts| &facts.remote),
        // Calls go to one service as they are.
        ("routeName", |_| ""),
    ];
    for (name, read) in facts {
        registry.add_method(name, move |lua, this, ()| {
            this.0.open()?;
            lua.create_string(read(&this.0.facts))
        });
    }
    registry.add_method("virtualClusterName", |_, _, ()| Ok(""));
    registry.add_method("dynamicMetadata", |lua, this, ()| {
        this.0.open()?;
        lua.create_any_userdata(DynamicMetadata(this.0.clone()))
    });
    registry.add_method("downstreamSslConnection", |lua, this, ()| ssl(lua, &this.0));
}

fn ssl(lua: &Lua, exchange: &Rc<Exchange>) -> Result<Value> {
    exchange.open()?;
    match &exchange.facts.peer {
        Some(_) => Ok(Value::UserData(lua.create_any_userdata(Ssl(exchange.clone()))?)),
        None => Ok(Value::Nil),
    }
}

pub(crate) fn register_connection(registry: &mut UserDataRegistry<Connection>) {
    registry.add_method("ssl", |lua, this, ()| ssl(lua, &this.0));
}

pub(crate) fn register_ssl(registry: &mut UserDataRegistry<Ssl>) {
    registry.add_method("peerCertificatePresented", |_, this, ()| {
        this.0.open()?;
        Ok(this.0.facts.peer.is_some())
    });
    registry.add_method("peerCertificateValidated", |_, this, ()| {
        this.0.open()?;
        // One that was not ended the session.
        Ok(this.0.facts.peer.is_some())
    });
    registry.add_method("uriSanPeerCertificate", |lua, this, ()| {
        this.0.open()?;
        let uris = this.0.facts.peer.as_ref().map(|peer| peer.uris.as_slice()).unwrap_or_default();
        lua.create_sequence_from(uris.iter().map(String::as_str))
    });
    registry.add_method("dnsSansPeerCertificate", |lua, this, ()| {
        this.0.open()?;
        lua.create_table()
    });
    registry.add_method("tlsVersion", |_, this, ()| {
        this.0.open()?;
        Ok(this.0.facts.peer.as_ref().map(|peer| peer.tls_version))
    });
}

pub(crate) fn register_dynamic(registry: &mut UserDataRegistry<DynamicMetadata>) {
    registry.add_method("get", |lua, this, filter: LuaString| {
        this.0.open()?;
        let data = this.0.dynamic.of(&filter.as_bytes());
        Ok(data.map(|data| data.into_value(lua)).transpose()?.unwrap_or(Value::Nil))
    });
    registry.add_method("set", |_, this, (filter, key, value): (LuaString, LuaString, Value)| {
        this.0.open()?;
        let data = Data::of(&value)?;
        this.0.dynamic.set(&filter.as_bytes(), &key.as_bytes(), data).map_err(mlua::Error::runtime)
    });
    registry.add_method("__entries", |lua, this, _: Variadic<Value>| {
        this.0.open()?;
        let entries = lua.create_table()?;
        for (name, data) in this.0.dynamic.all() {
            entries.raw_push(name.into_value(lua)?)?;
            entries.raw_push(data.into_value(lua)?)?;
        }
        Ok(entries)
    });
}

pub(crate) fn register_metadata(registry: &mut UserDataRegistry<Metadata>) {
    registry.add_method("get", |_, _, _: Variadic<Value>| Ok(Value::Nil));
    registry.add_method("__entries", |lua, _, _: Variadic<Value>| -> Result<Table> { lua.create_table() });
}
