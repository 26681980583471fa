//! What TLS to a provider is made with, API by API: certificate authorities of its own, and a certificate of ours.

use std::path::PathBuf;

use llm_proxy_load::mock::{Mock, MockOptions};
use llm_proxy_tests::tls::{Authority, Front, Identity, TLS12, TLS13, VALID};
use llm_proxy_tests::{Provider, World};

use super::common::wire::Wire;
use super::{CONTENT, TRUSTED, ask, at, refused_start};

/// The provider key of an API whose connections must all fail.
const UNSENT: &str = "sk-that-nobody-may-read";

/// Asks APIs one after another and checks the status of each answer.
///
/// On one connection as long as it lives, so that each exchange begins when the one before has given its own back.
async fn ask_all(world: &World, asked: &[(&str, u16)]) {
    let mut wire = Wire::open(world.product.data_addr()).await;
    for (step, (api, status)) in asked.iter().enumerate() {
        let answer = wire.ask(ask(api, &world.token.secret).bytes()).await;
        assert_eq!(answer.head.status, *status, "{step}, {api}: {}", answer.text());
        if *status != 200 {
            assert_eq!(answer.code(), "upstream_unreachable", "{step}, {api}");
        }
        if answer.head.says_close() {
            wire = Wire::open(world.product.data_addr()).await;
        }
    }
}

/// Provider keys for the APIs: for those in `failing` one that must not get out.
async fn set_keys(world: &World, apis: &[&str], failing: &[&str]) {
    let key = |api: &str| if failing.contains(&api) { UNSENT } else { Provider::OpenAi.key() };
    world.set_keys(apis.iter().map(|&api| (api.to_owned(), key(api)))).await;
}

/// How many lines of the log have this text.
fn lines_with(world: &World, text: &str) -> usize {
    world.product.log().lines().filter(|line| line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_file_has_the_only_authorities_of_its_api_and_no_connection_passes_from_one_trust_to_another() {
    let (private, public) = (Authority::new("An authority of the company's own"), Authority::new(TRUSTED));
    let provider = Mock::start(MockOptions::default()).await.unwrap();
    let inner = Front::tls(private.certify("localhost", VALID), provider.addr(), &TLS13).await;
    let outer = Front::tls(public.certify("localhost", VALID), provider.addr(), &TLS13).await;
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both.pem");
    let text = |authority: &Authority| std::fs::read_to_string(authority.file()).unwrap();
    std::fs::write(&both, text(&private) + &text(&public)).unwrap();

    let apis = [
        ("inner", &inner, Some(private.file())),
        ("inner-by-system", &inner, None),
        ("inner-by-both", &inner, Some(both.clone())),
        ("outer", &outer, None),
        ("outer-by-private", &outer, Some(private.file())),
        ("outer-by-both", &outer, Some(both)),
    ];
    let world = World::with(|mut options| {
        for (api, front, ca_file) in &apis {
            let ca_file = ca_file.as_ref().map_or(String::new(), |file| format!("ca_file: {}", file.display()));
            options = options.api(api, &(at(&front.host()) + &ca_file));
        }
        options.set("SSL_CERT_FILE", public.file().display())
    })
    .await;
    set_keys(&world, &apis.each_ref().map(|(api, ..)| *api), &["inner-by-system", "outer-by-private"]).await;

    let asked = [
        ("inner", 200),
        ("inner", 200),
        ("inner-by-system", 502),
        ("outer-by-private", 502),
        ("outer", 200),
        ("outer-by-private", 502),
        ("inner-by-both", 200),
        ("outer-by-both", 200),
        ("inner", 200),
        ("outer", 200),
    ];
    ask_all(&world, &asked).await;
    assert_eq!(provider.stats().requests, 7);
    for (front, name) in [(&inner, "inner"), (&outer, "outer")] {
        let seen = front.seen();
        assert_eq!(seen.handshakes, 2, "{name}: an API has connections of its own, and uses them again");
        for secret in [UNSENT, CONTENT] {
            assert!(!seen.wire_has(secret), "{name}: {secret:?} went out in the clear");
        }
        assert!(!seen.inside_has(UNSENT), "{name}: the proxy trusted it");
    }
    assert_eq!(lines_with(&world, "UnknownIssuer"), 3, "{}", world.product.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_demands_a_certificate_is_shown_the_one_of_its_api_and_is_502_without() {
    let (authority, clients) = (Authority::new(TRUSTED), Authority::new("An authority of clients"));
    let ours = clients.certify("client.test", VALID);
    let foreign = Authority::new("An authority that nobody knows").certify("client.test", VALID);
    let files = |identity: &Identity| {
        let (certificate, key) = (identity.certificate_file(), identity.key_file());
        format!("client_cert_file: {}\nclient_key_file: {}\n", certificate.display(), key.display())
    };
    for version in [&TLS12, &TLS13] {
        let provider = Mock::start(MockOptions::default()).await.unwrap();
        let identity = authority.certify("localhost", VALID);
        let front = Front::mutual_tls(&clients, identity, provider.addr(), version).await;
        let base = at(&front.host());
        let world = World::with(|options| {
            options
                .api("ours", &(base.clone() + &files(&ours)))
                .api("ours-and-ca", &format!("{base}{}ca_file: {}\n", files(&ours), authority.file().display()))
                .api("none", &base)
                .api("foreign", &(base.clone() + &files(&foreign)))
                .set("SSL_CERT_FILE", authority.file().display())
        })
        .await;
        set_keys(&world, &["ours", "ours-and-ca", "none", "foreign"], &["none", "foreign"]).await;

        let asked = [("ours", 200), ("none", 502), ("foreign", 502), ("ours-and-ca", 200), ("ours", 200)];
        ask_all(&world, &asked).await;
        assert_eq!(provider.stats().requests, 3, "{version:?}");
        let seen = front.seen();
        assert_eq!(seen.clients, [ours.certificate(), ours.certificate()], "{version:?}");
        assert_eq!(seen.handshakes, 2, "{version:?}");
        assert!(!seen.inside_has(UNSENT) && !seen.wire_has(UNSENT), "{version:?}");
        assert_eq!(lines_with(&world, "received fatal alert"), 2, "{version:?}: {}", world.product.log());
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_meant_stops_the_start_with_one_line_that_names_it() {
    let authority = Authority::new(TRUSTED);
    let (one, other) = (authority.certify("one.test", VALID), authority.certify("other.test", VALID));
    let text = |file: PathBuf| std::fs::read_to_string(file).unwrap();
    let (certificate, key, other_key) = (text(one.certificate_file()), text(one.key_file()), text(other.key_file()));
    let malformed = "-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    for (case, keys, words) in [
        ("a file that is not there", "{ca_file: no.pem}", &["openai.ca_file", "no.pem", "No such file"][..]),
        ("a folder", "{ca_file: .}", &["openai.ca_file", "directory"]),
        ("no PEM", "{ca_file: text.pem}", &["openai.ca_file", "text.pem", "expected one or more between BEGIN"]),
        ("a key for authorities", "{ca_file: key.pem}", &["openai.ca_file", "key.pem", "has no certificate"]),
        ("no certificate in PEM", "{ca_file: malformed.pem}", &["openai.ca_file", "malformed.pem"]),
        (
            "a certificate that is not there",
            "{client_cert_file: no.pem, client_key_file: key.pem}",
            &["openai.client_cert_file", "no.pem", "No such file"],
        ),
        (
            "a key that is not there",
            "{client_cert_file: cert.pem, client_key_file: no.pem}",
            &["openai.client_", "no.pem", "No such file"],
        ),
        (
            "a certificate for a key",
            "{client_cert_file: cert.pem, client_key_file: cert.pem}",
            &["openai.client_", "cert.pem", "no private key"],
        ),
        (
            "another certificate's key",
            "{client_cert_file: cert.pem, client_key_file: other.pem}",
            &["openai.client_", "other.pem", "not the key of cert.pem"],
        ),
        (
            "a certificate alone",
            "{client_cert_file: cert.pem}",
            &["llm-proxy.yaml:2:30: apis.openai.client_cert_file: found no `client_key_file` beside it, expected both"],
        ),
        (
            "a key alone",
            "{client_key_file: key.pem}",
            &["llm-proxy.yaml:2:29: apis.openai.client_key_file: found no `client_cert_file` beside it, expected both"],
        ),
        (
            "a provider without TLS",
            "{base_url: 'http://localhost:1', ca_file: cert.pem}",
            &["llm-proxy.yaml:2:53: apis.openai.ca_file: found a file, expected none: `base_url` is not https"],
        ),
    ] {
        let files = [
            ("llm-proxy.yaml", format!("apis:\n  openai: {keys}\n")),
            ("cert.pem", certificate.clone()),
            ("key.pem", key.clone()),
            ("other.pem", other_key.clone()),
            ("text.pem", "Here are our authorities:\n".to_owned()),
            ("malformed.pem", malformed.to_owned()),
        ];
        let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
        let line = refused_start(case, &files, &[]).await;
        for word in words {
            assert!(line.contains(word), "{case}: {word:?} is missing: {line}");
        }
        assert!(!line.contains("PRIVATE KEY"), "{case}: {line}");
    }
    let line = refused_start("the system's", &[], &[("SSL_CERT_FILE", "no/authorities.pem")]).await;
    assert!(line.contains("SSL_CERT_FILE") && line.contains("no/authorities.pem"), "{line}");
}
