//! A state of Lua for one script on one worker.

use crate::{
    Dynamic, Facts, Head, Program,
    body::{self, Buffer},
    exchange::Exchange,
    handle::{self, Handle},
    headers::{self, Headers},
    info,
    limits::{MAX_MESSAGE, MAX_MOVE, MEMORY, SEARCH_WORK},
    log::{Level, Log, Logger},
    meter::{Left, Meter},
    run::{Failure, Run},
};
use mlua::{Function, Lua, LuaOptions, Result, StdLib, Table, Value, Variadic};
use std::rc::{Rc, Weak};

/// Which of a script's two functions is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Request,
    Response,
}

/// What is kept between requests may take so much; the rest is for requests.
const FULL: usize = MEMORY / 4 * 3;

/// What a script defines, ready to be called. Its globals live as long as this, as in Envoy.
pub struct Vm {
    lua: Lua,
    meter: Rc<Meter>,
    on_request: Option<Function>,
    on_response: Option<Function>,
}

/// Tells whether a state still takes memory: runs keep it when its [`Vm`] has gone.
pub struct Alive(Weak<Meter>);

impl Alive {
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Vm {
    /// Runs a script's own text, which defines its functions.
    ///
    /// # Errors
    /// It failed, or used up an invocation's budget.
    pub fn start(program: &Program, log: Log) -> std::result::Result<Self, Failure> {
        let made = Self::make(log).map_err(|error| Failure::of(&error, None))?;
        let (lua, meter) = made;
        let chunk = lua.load(program.source()).set_name("=script");
        let (loaded, exceeded) = meter.measure(&mut Left::default(), || chunk.exec());
        loaded.map_err(|error| Failure::of(&error, exceeded))?;
        let function = |name| lua.globals().get::<Value>(name).ok().and_then(|it| it.as_function().cloned());
        let (on_request, on_response) = (function("envoy_on_request"), function("envoy_on_response"));
        Ok(Self { lua, meter, on_request, on_response })
    }

    fn make(log: Log) -> Result<(Lua, Rc<Meter>)> {
        let libraries = StdLib::COROUTINE
            | StdLib::TABLE
            | StdLib::OS
            | StdLib::STRING
            | StdLib::UTF8
            | StdLib::BIT
            | StdLib::MATH
            | StdLib::BUFFER;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        lua.set_memory_limit(MEMORY)?;
        let logger = Rc::new(Logger::new(log));
        let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
        let waiting: Table = prelude.call((handle::asks(&lua)?, SEARCH_WORK, MAX_MOVE))?;
        lua.register_userdata_type::<Handle>(|registry| handle::register(registry, &waiting, &logger))?;
        lua.register_userdata_type::<Headers>(headers::register)?;
        lua.register_userdata_type::<Buffer>(body::register)?;
        lua.register_userdata_type::<info::StreamInfo>(info::register_stream_info)?;
        lua.register_userdata_type::<info::Connection>(info::register_connection)?;
        lua.register_userdata_type::<info::Ssl>(info::register_ssl)?;
        lua.register_userdata_type::<info::DynamicMetadata>(info::register_dynamic)?;
        lua.register_userdata_type::<info::Metadata>(info::register_metadata)?;
        let globals = lua.globals();
        // They read files, compile text, change other functions' globals, or tell of the process.
        for name in ["require", "loadstring", "getfenv", "setfenv", "collectgarbage", "gcinfo", "newproxy"] {
            globals.raw_remove(name)?;
        }
        globals
            .raw_set("print", lua.create_function(move |_, said: Variadic<Value>| print(&logger, &said))?)?;
        lua.sandbox(true)?;
        let meter = Rc::new(Meter::default());
        let steps = meter.clone();
        lua.set_interrupt(move |_| steps.step());
        Ok((lua, meter))
    }

    /// Whether the script has a function for this.
    pub fn has(&self, phase: Phase) -> bool {
        self.function(phase).is_some()
    }

    /// Collects what nobody needs, if memory is short: Luau does so only as it goes. `false`: what the script keeps leaves
    /// too little, and another state has to take this one's place.
    pub fn make_room(&self) -> bool {
        if self.is_full() {
            // Twice: what a dead coroutine holds is found by the second round.
            drop(self.lua.gc_collect().and_then(|()| self.lua.gc_collect()));
        }
        !self.is_full()
    }

    /// For who lets go of it and wants to know when it is gone.
    pub fn alive(&self) -> Alive {
        // The state itself keeps its meter, so that this goes with it and not before.
        Alive(Rc::downgrade(&self.meter))
    }

    fn is_full(&self) -> bool {
        self.lua.used_memory() > FULL
    }

    fn function(&self, phase: Phase) -> Option<&Function> {
        match phase {
            Phase::Request => self.on_request.as_ref(),
            Phase::Response => self.on_response.as_ref(),
        }
    }

    /// One call of the function for this phase.
    ///
    /// # Errors
    /// There is no function, or no memory for it; the head comes back.
    pub fn run(
        &self,
        phase: Phase,
        head: Head,
        has_body: bool,
        facts: Rc<Facts>,
        dynamic: Rc<Dynamic>,
    ) -> std::result::Result<Run, Box<(Failure, Head)>> {
        let Some(function) = self.function(phase) else {
            return Err(Box::new((Failure::missing(), head)));
        };
        if !self.make_room() {
            return Err(Box::new((Failure::memory(), head)));
        }
        let exchange = Rc::new(Exchange::new(phase, has_body, facts, dynamic));
        let run = self.lua.create_thread(function.clone()).and_then(|thread| {
            let handle = self.lua.create_any_userdata(Handle(exchange.clone()))?;
            Ok(Run::new(self.lua.clone(), thread, handle, exchange.clone(), self.meter.clone()))
        });
        match run {
            Ok(run) => {
                exchange.begin(head);
                Ok(run)
            }
            Err(error) => Err(Box::new((Failure::of(&error, None), head))),
        }
    }
}

/// Texts and numbers as they are; of other values what they are. No more of them than a message has room for.
fn print(logger: &Logger, said: &[Value]) -> Result<()> {
    let mut line = Vec::new();
    for value in said {
        if line.len() >= MAX_MESSAGE {
            break;
        }
        if !line.is_empty() {
            line.push(b' ');
        }
        match value {
            Value::String(text) => {
                let bytes = text.as_bytes();
                line.extend_from_slice(bytes.get(..MAX_MESSAGE).unwrap_or(&bytes));
            }
            Value::Integer(number) => line.extend_from_slice(number.to_string().as_bytes()),
            Value::Number(number) => line.extend_from_slice(number.to_string().as_bytes()),
            Value::Boolean(value) => line.extend_from_slice(value.to_string().as_bytes()),
            other => line.extend_from_slice(other.type_name().as_bytes()),
        }
    }
    logger.say(Level::Info, &line);
    Ok(())
}
