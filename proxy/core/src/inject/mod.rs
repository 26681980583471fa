//! Usage that nobody asked for: the provider is asked for it in the client's place, and the client does not see it.
//!
//! A stream of the OpenAI dialect tells its usage only if the request says `stream_options.include_usage`. It then has
//! one event more, behind those with choices and before `[DONE]`, whose `choices` are empty (OpenAI API reference, chat
//! completions and completions). For an API with `inject_usage`, [`ask()`] puts the question into the request, and
//! [`Hider`] takes that event out of the answer again. Both are byte-exact apart from this: one edit of the request,
//! none where two parsers could read it differently; one event of the answer gone, every other byte as it came.
//!
//! Two things stay visible to a client that did not ask. OpenAI, once asked, writes `"usage":null` into the chunks with
//! choices. And providers that tell usage unasked, in a chunk with choices (Groq, Mistral, DeepSeek, OpenRouter), still
//! do: such a chunk carries a piece of the answer.

mod ask;
mod hide;
mod look;
mod members;

pub use ask::{Asked, ask};
pub use hide::Hider;
