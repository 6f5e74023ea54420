//! Protobuf as tonic has it, with buffers that begin small.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a stream has to read and to write before its first message: heartbeats and acknowledgements fit. Longer messages let
/// a buffer grow, to their length and no further: what would be left of it would serve for many short ones, and keep all of
/// it. tonic's own 8 KiB, twice a stream, were a quarter of what an idle proxy costs its zone.
const BUFFER: usize = 256;

/// Messages that wait are sent together up to this many bytes, as by default.
const TOGETHER: usize = 32 * 1024;

/// The codec of all services here.
#[derive(Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        SmallBuffers(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Exact<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Exact(ProstCodec::<T, U>::raw_encoder(buffers()))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(buffers())
    }
}

/// Encodes into as much as a message needs.
#[derive(Debug)]
pub struct Exact<T>(ProstEncoder<T>);

impl<T: Message> Encoder for Exact<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        self.0.encode(item, buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER, TOGETHER)
}
