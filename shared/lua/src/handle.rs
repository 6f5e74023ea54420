//! What a script is called with.

use crate::{
    body::Buffer,
    exchange::{BodyState, Exchange, Want},
    headers::Headers,
    info::{Connection, Metadata, StreamInfo},
    limits::{MAX_CALLS, MAX_POSTS},
    log::{Level, Logger},
    respond::{Call, CallOptions, Reply},
    vm::Phase,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use mlua::{
    AnyUserData, Error, Lua, LuaString, Result, Table, UserDataFields, UserDataMethods, UserDataRegistry,
    Value,
};
use std::{
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

pub(crate) struct Handle(pub(crate) Rc<Exchange>);

/// What must wait is written in Lua, since only that can yield; these are what it asks first. The ones that return
/// `true` yield.
pub(crate) fn asks(lua: &Lua) -> Result<Table> {
    let asks = lua.create_table()?;
    asks.raw_set("body", lua.create_function(ask_body)?)?;
    asks.raw_set("whole", lua.create_function(|lua, handle: AnyUserData| whole(lua, &of(&handle)?))?)?;
    asks.raw_set("chunk", lua.create_function(|_, handle: AnyUserData| ask_piece(&handle, Want::Chunk))?)?;
    asks.raw_set(
        "trailers",
        lua.create_function(|_, handle: AnyUserData| ask_piece(&handle, Want::Trailers))?,
    )?;
    asks.raw_set("fields", lua.create_function(|lua, handle: AnyUserData| fields(lua, &of(&handle)?))?)?;
    asks.raw_set("call", lua.create_function(ask_call)?)?;
    asks.raw_set("respond", lua.create_function(respond)?)?;
    Ok(asks)
}

fn of(handle: &AnyUserData) -> Result<Rc<Exchange>> {
    let exchange = handle.borrow::<Handle>()?.0.clone();
    exchange.open()?;
    Ok(exchange)
}

fn ask_body(_: &Lua, (handle, wrap): (AnyUserData, Option<bool>)) -> Result<bool> {
    let exchange = of(&handle)?;
    let mut body = exchange.body.borrow_mut();
    match &*body {
        BodyState::Unread => {
            *exchange.want.borrow_mut() = Some(Want::Body);
            Ok(true)
        }
        BodyState::Flowing => Err(Error::runtime("the body is on its way already")),
        BodyState::Read { .. } => Ok(false),
        BodyState::Absent => {
            if wrap.unwrap_or_default() {
                *body = BodyState::Read { bytes: bytes::Bytes::new(), replaced: false };
            }
            Ok(false)
        }
    }
}

/// The body as a whole, if there is one.
fn whole(lua: &Lua, exchange: &Rc<Exchange>) -> Result<Value> {
    match &*exchange.body.borrow() {
        BodyState::Read { .. } => {
            Ok(Value::UserData(lua.create_any_userdata(Buffer::whole(exchange.clone()))?))
        }
        BodyState::Unread | BodyState::Flowing | BodyState::Absent => Ok(Value::Nil),
    }
}

/// The next piece of the body, or the trailers: the message goes on meanwhile.
fn ask_piece(handle: &AnyUserData, want: Want) -> Result<bool> {
    let exchange = of(handle)?;
    if matches!(want, Want::Chunk) && matches!(*exchange.body.borrow(), BodyState::Read { .. }) {
        return Err(Error::runtime("body() has read the whole body"));
    }
    if matches!(want, Want::Trailers) && exchange.trailers.borrow().is_some() {
        return Ok(false);
    }
    *exchange.want.borrow_mut() = Some(want);
    Ok(true)
}

/// The trailers, which have come.
fn fields(lua: &Lua, exchange: &Rc<Exchange>) -> Result<AnyUserData> {
    lua.create_any_userdata(Headers { exchange: exchange.clone(), trailers: true })
}

type CallArguments = (AnyUserData, LuaString, Table, Option<LuaString>, f64, Value);

fn ask_call(_: &Lua, (handle, cluster, headers, body, timeout, options): CallArguments) -> Result<bool> {
    let exchange = of(&handle)?;
    let options = CallOptions::read(&options)?;
    let call = Call::read(&cluster, &headers, body, timeout, &options)?;
    if !options.asynchronous {
        if exchange.called.get() >= MAX_CALLS {
            return Err(Error::runtime(format!("a script makes at most {MAX_CALLS} calls")));
        }
        exchange.called.set(exchange.called.get() + 1);
        *exchange.want.borrow_mut() = Some(Want::Call(Box::new(call)));
        return Ok(true);
    }
    if exchange.posted.get() >= MAX_POSTS {
        return Err(Error::runtime(format!(
            "a script makes at most {MAX_POSTS} calls that it does not wait for"
        )));
    }
    exchange.posted.set(exchange.posted.get() + 1);
    exchange.posts.borrow_mut().push(call);
    Ok(false)
}

fn respond(_: &Lua, (handle, headers, body): (AnyUserData, Table, Option<LuaString>)) -> Result<()> {
    let exchange = of(&handle)?;
    if exchange.phase == Phase::Response {
        return Err(Error::runtime("respond not currently supported in the response path"));
    }
    if exchange.head.borrow().is_none() {
        return Err(Error::runtime("respond() cannot be called if the request has gone on"));
    }
    *exchange.reply.borrow_mut() = Some(Reply::read(&headers, body)?);
    Ok(())
}

pub(crate) fn register(registry: &mut UserDataRegistry<Handle>, waiting: &Table, logger: &Rc<Logger>) {
    for name in ["body", "bodyChunks", "trailers", "httpCall", "respond"] {
        if let Ok(function) = waiting.raw_get::<mlua::Function>(name) {
            registry.add_field(name, function);
        }
    }
    registry.add_method("headers", |lua, this, ()| {
        this.0.open()?;
        lua.create_any_userdata(Headers { exchange: this.0.clone(), trailers: false })
    });
    registry.add_method("streamInfo", |lua, this, ()| {
        this.0.open()?;
        lua.create_any_userdata(StreamInfo(this.0.clone()))
    });
    registry.add_method("connection", |lua, this, ()| {
        this.0.open()?;
        lua.create_any_userdata(Connection(this.0.clone()))
    });
    registry.add_method("metadata", |lua, this, ()| {
        this.0.open()?;
        lua.create_any_userdata(Metadata)
    });
    registry.add_method("base64Escape", |lua, _, text: LuaString| {
        lua.create_string(STANDARD.encode(&*text.as_bytes()))
    });
    // Routes are chosen before scripts, and stay.
    registry.add_method("clearRouteCache", |_, _, ()| Ok(()));
    registry.add_method("timestamp", |_, _, unit: Value| Ok(timestamp(&unit) as f64));
    registry.add_method("timestampString", |_, _, unit: Value| Ok(timestamp(&unit).to_string()));
    let levels = [
        ("logTrace", Level::Trace),
        ("logDebug", Level::Debug),
        ("logInfo", Level::Info),
        ("logWarn", Level::Warn),
        ("logErr", Level::Error),
        ("logCritical", Level::Error),
    ];
    for (name, level) in levels {
        let logger = logger.clone();
        registry.add_method(name, move |_, _, message: LuaString| {
            logger.say(level, &message.as_bytes());
            Ok(())
        });
    }
}

/// Since 1970, in `EnvoyTimestampResolution.MICROSECOND` or else milliseconds.
fn timestamp(unit: &Value) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = unit.as_string().is_some_and(|unit| *unit.as_bytes() == *b"us");
    let count = if micros { now.as_micros() } else { now.as_millis() };
    u64::try_from(count).unwrap_or(u64::MAX)
}
