//! What do the forms of a record cost: the protobuf that goes into the journal, on the way of the request, and what the
//! file sink makes of it behind the answer, a message again and a line of JSON?

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use llm_proxy_plugins::event::{Exchange, Message, append_json_line};

use crate::typical;

/// Measures each step by itself. Rates are of the bytes written, for `decode` of those read.
pub fn measure(criterion: &mut Criterion) {
    let (begin, end) = (typical::begin(), typical::end());
    let payload = end.encode_to_vec();
    let mut line = Vec::new();
    append_json_line(&end, &mut line);
    let mut buffer = Vec::with_capacity(4_096);

    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Bytes((begin.encoded_len() + payload.len()) as u64));
    group.bench_function("encode_begin_and_end", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            black_box(&begin).encode(&mut buffer).expect("a vector grows");
            black_box(&end).encode(&mut buffer).expect("a vector grows");
            buffer.len()
        });
    });
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("decode_end", |bencher| {
        bencher.iter(|| Exchange::decode(black_box(payload.as_slice())).expect("what was encoded decodes"));
    });
    group.throughput(Throughput::Bytes(line.len() as u64));
    group.bench_function("json_line", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            append_json_line(black_box(&end), &mut buffer);
            buffer.len()
        });
    });
    group.finish();
}
