//! A generated corpus of tokens that must be refused, and the few that must not.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha256;

use super::world::{ACME, ED_ISSUER, ES_ISSUER, GLOBEX, GONE, NOBODY, RS_ISSUER, Signer, World};
use crate::domain::clock::Clock;
use crate::tenancy::{CredentialKind, MintError, PresentedCredentials, RefusalKind, Role};

const UNAUTHORIZED: Option<RefusalKind> = Some(RefusalKind::Unauthorized);

#[tokio::test]
async fn a_right_token_of_each_algorithm_is_believed() {
    let world = World::new();
    let ed = world.bearer(&world.ed_token(&world.claims())).await.expect("believed");
    assert_eq!((ed.scope().tenant(), ed.scope().role()), (ACME, Some(Role::Reader)));
    assert_eq!(ed.scope().principal().as_str(), "token:https://ed.example:ann");
    assert_eq!(ed.kind(), CredentialKind::Token);
    assert_eq!(ed.expires_at(), Some(world.clock.now() + Duration::from_mins(10)));

    let mut es = world.claims();
    es["iss"] = ES_ISSUER.into();
    es["org"] = json!({"slug": "globex"});
    es["groups"] = "writer".into();
    es.as_object_mut().expect("an object").remove("aud");
    let es = world.bearer(&world.es.token(&world.es.header().to_string(), &es.to_string())).await;
    let es = es.expect("believed");
    assert_eq!((es.scope().tenant(), es.scope().role()), (GLOBEX, Some(Role::Writer)));

    let mut rs = world.claims();
    rs["iss"] = RS_ISSUER.into();
    rs["tenant_id"] = json!(GLOBEX);
    let rs = world.bearer(&world.rs.token(&world.rs.header().to_string(), &rs.to_string())).await;
    assert_eq!(rs.expect("believed").scope().tenant(), GLOBEX);
}

#[tokio::test]
async fn every_claim_absent_wrong_or_of_a_wrong_type_is_refused() {
    let world = World::new();
    let now = world.clock.now().timestamp();
    let types = [json!(null), json!(true), json!(""), json!([]), json!({}), json!([[]]), json!(-1)];
    let wrong: [(&str, Vec<Value>); 7] = [
        (
            "iss",
            vec![json!("https://evil.example"), json!("https://ed.example/"), json!([ED_ISSUER]), json!(1)],
        ),
        ("sub", vec![json!("x".repeat(256)), json!("a\nb"), json!(1)]),
        ("aud", vec![json!("other"), json!(["other"]), json!(["bulkhead-test", 1]), json!(1)]),
        ("exp", vec![json!((now + 600).to_string()), json!(1e300), json!(i64::MAX), json!(now + 7200)]),
        ("nbf", vec![json!((now - 10).to_string()), json!(now + 6), json!(1e300)]),
        ("iat", vec![json!((now - 10).to_string()), json!(now + 6), json!(now - 3001), json!(now + 601)]),
        (
            "tenant_id",
            vec![
                json!(GLOBEX),
                json!(GONE),
                json!(NOBODY),
                json!("acme"),
                json!([ACME]),
                json!(1),
                json!("../x"),
            ],
        ),
    ];
    for (claim, values) in wrong {
        for value in values.into_iter().chain(types.clone()) {
            let mut claims = world.claims();
            claims[claim] = value.clone();
            let expected = if claim == "tenant_id" && value.is_null() {
                Some(RefusalKind::NoTenant)
            } else {
                UNAUTHORIZED
            };
            assert_eq!(world.kind(&world.ed_token(&claims)).await, expected, "{claim} = {value}");
        }
        let mut claims = world.claims();
        claims.as_object_mut().expect("an object").remove(claim);
        let expected = match claim {
            "nbf" | "iat" => None,
            "tenant_id" => Some(RefusalKind::NoTenant),
            _ => UNAUTHORIZED,
        };
        assert_eq!(world.kind(&world.ed_token(&claims)).await, expected, "without {claim}");
    }
    for value in [json!(1), json!({}), json!([1]), json!(true)] {
        let mut claims = world.claims();
        claims["roles"] = value.clone();
        assert_eq!(world.kind(&world.ed_token(&claims)).await, UNAUTHORIZED, "roles = {value}");
    }
}

#[tokio::test]
async fn only_a_token_that_is_right_in_all_else_is_told_that_it_expired() {
    let world = World::new();
    let token = world.ed_token(&world.claims());
    world.clock.pass(Duration::from_secs(604));
    assert_eq!(world.kind(&token).await, None, "within the leeway");
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(world.kind(&token).await, Some(RefusalKind::TokenExpired));
    let now = world.clock.now().timestamp();
    let mut claims = world.claims();
    (claims["exp"], claims["iat"], claims["nbf"]) = (json!(now - 60), json!(now - 120), json!(now - 120));
    assert_eq!(world.kind(&world.ed_token(&claims)).await, Some(RefusalKind::TokenExpired));
    for (claim, value) in [("aud", json!("other")), ("roles", json!(1)), ("tenant_id", json!(1))] {
        let mut wrong = claims.clone();
        wrong[claim] = value;
        assert_eq!(world.kind(&world.ed_token(&wrong)).await, UNAUTHORIZED, "{claim}");
    }
    let forged = Signer::ed(7).token(&world.ed.header().to_string(), &claims.to_string());
    assert_eq!(world.kind(&forged).await, UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_without_a_start_must_end_within_a_session() {
    let world = World::new();
    let now = world.clock.now().timestamp();
    let mut claims = world.claims();
    claims.as_object_mut().expect("an object").remove("iat");
    claims["exp"] = json!(now + 3600);
    assert_eq!(world.kind(&world.ed_token(&claims)).await, None);
    claims["exp"] = json!(now + 3601);
    assert_eq!(world.kind(&world.ed_token(&claims)).await, UNAUTHORIZED);
    claims["exp"] = serde_json::from_str(&format!("{}.5", now + 600)).expect("a number");
    assert_eq!(world.kind(&world.ed_token(&claims)).await, None, "seconds may have a fraction");
}

#[tokio::test]
async fn no_header_can_choose_the_algorithm_or_the_key() {
    let world = World::new();
    let claims = world.claims().to_string();
    let evil = Signer::ed(7);
    let ours = world.ed.header();
    let with = |name: &str, value: Value| {
        let mut header = ours.clone();
        header[name] = value;
        header.to_string()
    };
    let mut corpus = Vec::new();
    // Unsigned, in every spelling.
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let signed = world.ed.token(&with("alg", alg.into()), &claims);
        let unsigned = format!("{}.", signed.rsplit_once('.').expect("three parts").0);
        corpus.extend([signed, unsigned]);
    }
    // A public key as the secret of an HMAC.
    let raw = ed25519_public(&world);
    for secret in [world.ed.public_pem().into_bytes(), world.ed.public_pem().trim().into(), raw] {
        for alg in ["HS256", "EdDSA"] {
            let message = format!("{}.{}", encode(&with("alg", alg.into())), URL_SAFE_NO_PAD.encode(&claims));
            let mut mac = Hmac::<Sha256>::new_from_slice(&secret).expect("any length");
            mac.update(message.as_bytes());
            corpus.push(format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())));
        }
    }
    // Other algorithms, rightly signed with our key and with their own.
    for alg in ["ES256", "RS256", "PS256", "EdDSA ", "eddsa", "Ed25519"] {
        corpus.push(world.ed.token(&with("alg", alg.into()), &claims));
    }
    for other in [&world.es, &world.rs] {
        corpus.push(other.token(&other.header().to_string(), &claims));
        corpus.push(other.token(&ours.to_string(), &claims));
    }
    // A key or its address in the header, signed by it and by us.
    for signer in [&evil, &world.ed] {
        for (name, value) in [
            ("jwk", evil.jwk("one")),
            ("jku", json!("http://127.0.0.1:1/keys")),
            ("x5u", json!("http://127.0.0.1:1/cert")),
            ("x5c", json!(["AAAA"])),
            ("crit", json!(["exp"])),
            ("b64", json!(false)),
            ("zip", json!("DEF")),
            ("enc", json!("A128GCM")),
            ("typ", json!("dpop+jwt")),
            ("typ", json!(1)),
            ("kid", json!(1)),
            ("kid", json!(["one"])),
            ("alg", json!(["EdDSA"])),
            ("alg", json!(null)),
        ] {
            corpus.push(signer.token(&with(name, value), &claims));
        }
    }
    corpus.push(evil.token(&ours.to_string(), &claims));
    for token in corpus {
        assert_eq!(world.kind(&token).await, UNAUTHORIZED, "{token}");
    }
    assert_eq!(world.kind(&world.ed.token(r#"{"alg":"EdDSA"}"#, &claims)).await, None);
    assert_eq!(world.kind(&world.ed.token(&with("x5t", "AAAA".into()), &claims)).await, None);
}

#[tokio::test]
async fn a_key_id_is_nothing_but_a_key_of_the_map() {
    let world = World::new();
    let mut claims = world.claims();
    claims["iss"] = ES_ISSUER.into();
    claims["org"] = json!({"slug": "acme"});
    claims.as_object_mut().expect("an object").remove("aud");
    let sign = |signer: &Signer, kid: Value| {
        signer.token(&json!({"alg": "ES256", "kid": kid}).to_string(), &claims.to_string())
    };
    assert_eq!(world.kind(&sign(&world.es, "one".into())).await, None);
    for kid in [
        "two",
        "oct",
        "../../../../dev/null",
        "/dev/null",
        "one' OR '1'='1",
        "http://127.0.0.1:1/",
        "",
        "ONE",
    ] {
        assert_eq!(world.kind(&sign(&world.es, kid.into())).await, UNAUTHORIZED, "{kid}");
    }
    assert_eq!(world.kind(&sign(&Signer::es(9), "one".into())).await, UNAUTHORIZED);
    claims["aud"] = "somebody-else".into();
    let audience = world.es.token(&world.es.header().to_string(), &claims.to_string());
    assert_eq!(world.kind(&audience).await, UNAUTHORIZED, "an audience where none is stated");
}

#[tokio::test]
async fn a_member_twice_and_a_broken_form_are_refused() {
    let world = World::new();
    let (header, claims) = (world.ed.header().to_string(), world.claims().to_string());
    let twice = claims.replacen('{', &format!(r#"{{"tenant_id":"{ACME}","#), 1);
    let header_twice = header.replacen('{', r#"{"alg":"EdDSA","#, 1);
    let right = world.ed.token(&header, &claims);
    let (message, signature) = right.rsplit_once('.').expect("three parts");
    let corpus = [
        world.ed.token(&header, &twice),
        world.ed.token(&header_twice, &claims),
        world.ed.token(&header, "[]"),
        world.ed.token("[]", &claims),
        world.ed.token(&header, ""),
        format!("{right}="),
        format!("{right}.x"),
        format!(".{right}"),
        format!("{message}."),
        format!("{message}.{}", &signature[1..]),
        format!("{message}..{signature}"),
        message.to_owned(),
        "a.b.c".to_owned(),
        "..".to_owned(),
        right.replace('.', " . "),
        format!("{right}{}", "x".repeat(9000)),
    ];
    for token in corpus {
        assert_eq!(world.kind(&token).await, UNAUTHORIZED, "{token}");
    }
    // Each letter of a right token matters.
    for place in (0..right.len()).step_by(7) {
        let letter = if right.as_bytes()[place] == b'A' { "B" } else { "A" };
        let mut other = right.clone();
        other.replace_range(place..=place, letter);
        assert_eq!(world.kind(&other).await, UNAUTHORIZED, "place {place}");
    }
}

#[tokio::test]
async fn roles_are_those_that_the_profile_knows() {
    let world = World::new();
    for (roles, expected) in [
        (json!(["reader", "writer"]), Some(Role::Writer)),
        (json!("boss"), Some(Role::TenantAdmin)),
        (json!(["visitor", "operator", "READER"]), None),
        (json!([]), None),
        (json!(null), None),
    ] {
        let mut claims = world.claims();
        claims["roles"] = roles.clone();
        let caller = world.bearer(&world.ed_token(&claims)).await.expect("believed");
        assert_eq!(caller.scope().role(), expected, "{roles}");
    }
}

#[tokio::test]
async fn the_servers_own_tokens_are_believed_until_they_end() {
    let world = World::new();
    let credential = world.operator();
    let presented =
        PresentedCredentials { x_api_key: vec![credential.as_bytes()], ..PresentedCredentials::default() };
    let operator = world.auth.authenticate_operator(&presented).await.expect("an operator");
    let mint = |subject: &str, seconds| {
        world.signer.mint(&operator, ACME, subject, &[Role::Writer], Duration::from_secs(seconds))
    };
    for (subject, seconds) in [("", 60), ("a\u{0}", 60), (&*"x".repeat(256), 60)] {
        assert_eq!(mint(subject, seconds).err(), Some(MintError::Subject));
    }
    for seconds in [0, 3601, u64::MAX] {
        assert_eq!(mint("ann", seconds).err(), Some(MintError::Lifetime { max_seconds: 3600 }));
    }
    let minted = mint("ann", 3600).expect("made");
    let caller = world.bearer(minted.token.expose_secret()).await.expect("believed");
    assert_eq!((caller.scope().tenant(), caller.scope().role()), (ACME, Some(Role::Writer)));
    assert_eq!(caller.expires_at(), Some(minted.expires_at));
    assert!(!format!("{minted:?}{:?}", world.signer).contains(minted.token.expose_secret()));
    assert_eq!(world.signer.jwks()["keys"][0]["crv"], "Ed25519");
    world.clock.pass(Duration::from_secs(3606));
    assert_eq!(world.kind(minted.token.expose_secret()).await, Some(RefusalKind::TokenExpired));
}

fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn ed25519_public(world: &World) -> Vec<u8> {
    match &world.ed {
        Signer::Ed(key) => key.verifying_key().as_bytes().to_vec(),
        Signer::Es(_) | Signer::Rs => Vec::new(),
    }
}
