//! Every statement that is sent, as text.
//!
//! `%T` becomes the tenant's label; `%OWN` asks tenant and namespace of a node or relation, as parameters.
//!
//! **Invariant:** each node and each relation of every pattern carries `%OWN`, and each node `%T` as well: what lies
//! between two of a tenant's nodes is the tenant's own too. `Head` alone is asked for which tenants there are, and of
//! one tenant for its namespaces; what looks for nodes that are not wholly a partition's own leaves one of the two away.
//! **Invariant:** no text of a caller's is part of a statement; keys and ids are parameters.

use super::client::Statement;
use crate::domain::ids::{NamespaceId, TenantId};

/// One constraint for each kind of node.
pub(super) const CONSTRAINTS: [&str; 5] = [
    "CREATE CONSTRAINT bulkhead_head IF NOT EXISTS
     FOR (n:Head) REQUIRE (n.tenant_id, n.namespace_id, n.key) IS UNIQUE",
    "CREATE CONSTRAINT bulkhead_chunk IF NOT EXISTS
     FOR (n:Chunk) REQUIRE (n.tenant_id, n.namespace_id, n.key) IS UNIQUE",
    "CREATE CONSTRAINT bulkhead_entity IF NOT EXISTS
     FOR (n:Entity) REQUIRE (n.tenant_id, n.namespace_id, n.key) IS UNIQUE",
    "CREATE CONSTRAINT bulkhead_title IF NOT EXISTS
     FOR (n:Title) REQUIRE (n.tenant_id, n.namespace_id, n.key) IS UNIQUE",
    "CREATE CONSTRAINT bulkhead_group IF NOT EXISTS
     FOR (n:Group) REQUIRE (n.tenant_id, n.namespace_id, n.key) IS UNIQUE",
];

pub(super) const HEAD: &str = "MATCH (h:Head:%T {%OWN, key: 'head'})
    RETURN h.tenant_id AS tenant, h.namespace_id AS namespace, h.seq AS seq, h.chunks AS chunks, h.token AS token";

pub(super) const BEGIN: &str = "MERGE (h:Head:%T {%OWN, key: 'head'})
    ON CREATE SET h.seq = 0, h.chunks = 0, h.token = $token";

pub(super) const CHUNKS: &str = "UNWIND $keys AS key MATCH (c:Chunk:%T {%OWN, key: key})
    RETURN c.tenant_id AS tenant, c.namespace_id AS namespace, c.key AS key, c.own AS own,
        [(c)-[m:MENTIONS {%OWN}]->(e:Entity:%T {%OWN}) | [e.key, m.name, m.concept]] AS entities,
        [(c)-[:PART_OF {%OWN}]->(g:Group:%T {%OWN})-[:TITLED {%OWN}]->(t:Title:%T {%OWN})
            | [g.key, t.key]] AS groups,
        [(c)-[:NAMES {%OWN}]->(t:Title:%T {%OWN}) | t.key] AS named";

pub(super) const TITLES: &str = "UNWIND $keys AS key MATCH (t:Title:%T {%OWN, key: key})
    RETURN t.tenant_id AS tenant, t.namespace_id AS namespace, t.key AS key,
        [(t)<-[:TITLED {%OWN}]-(g:Group:%T {%OWN}) | g.key][..$most] AS list";

pub(super) const MEMBERS: &str = "UNWIND $keys AS key MATCH (g:Group:%T {%OWN, key: key})
    RETURN g.tenant_id AS tenant, g.namespace_id AS namespace, g.key AS key,
        [(g)<-[:PART_OF {%OWN}]-(c:Chunk:%T {%OWN}) | c.key] AS list";

pub(super) const NAMERS: &str = "UNWIND $keys AS key MATCH (t:Title:%T {%OWN, key: key})
    RETURN t.tenant_id AS tenant, t.namespace_id AS namespace, t.key AS key,
        [(t)<-[:NAMES {%OWN}]-(c:Chunk:%T {%OWN}) | c.key][..$most] AS list";

pub(super) const RARE: &str = "UNWIND $keys AS key MATCH (e:Entity:%T {%OWN, key: key})
    CALL (e) {
        MATCH (e)<-[:MENTIONS {%OWN, name: true}]-(c:Chunk:%T {%OWN}) RETURN c.key AS chunk LIMIT $most
    }
    RETURN e.tenant_id AS tenant, e.namespace_id AS namespace, e.key AS key, collect(chunk) AS list";

pub(super) const MENTIONS: &str = "UNWIND $keys AS key MATCH (e:Entity:%T {%OWN, key: key})
    RETURN e.tenant_id AS tenant, e.namespace_id AS namespace, e.key AS key,
        [(e)<-[m:MENTIONS {%OWN}]-(c:Chunk:%T {%OWN}) | [c.key, m.name, m.concept]] AS list";

/// Keys are unsigned and kept as signed numbers; the negative ones are the greater.
pub(super) const TOP: &str = "MATCH (e:Entity:%T {%OWN})<-[m:MENTIONS {%OWN}]-(:Chunk:%T {%OWN})
    WITH e, sum(CASE WHEN m.name THEN 1 ELSE 0 END + CASE WHEN m.concept THEN 1 ELSE 0 END) AS count
    RETURN e.tenant_id AS tenant, e.namespace_id AS namespace, e.key AS key, count
    ORDER BY count DESC, e.key < 0, e.key LIMIT $most";

/// In the order of the constraint's index: in any other, each page would sort all that is left.
pub(super) const MARKS: &str = "MATCH (c:Chunk:%T {%OWN}) WHERE c.key > $after
    RETURN c.tenant_id AS tenant, c.namespace_id AS namespace, c.key AS key, c.mark AS mark
    ORDER BY c.tenant_id, c.namespace_id, c.key LIMIT $most";

/// Takes the lock under which the token is read, and held to the end of the transaction. Whoever waited for it may have
/// found a head that was deleted meanwhile, or what it was before: so the head is read again, and has to be the locked one.
pub(super) const LOCK: &str = "MATCH (h:Head:%T {%OWN, key: 'head'}) SET h.locked = randomUUID()
    WITH collect(h.locked) AS mine MATCH (h:Head:%T {%OWN, key: 'head'}) WHERE h.locked IN mine
    RETURN h.tenant_id AS tenant, h.namespace_id AS namespace, h.token AS token";

pub(super) const MOVE: &str = "MATCH (h:Head:%T {%OWN, key: 'head'})
    SET h.seq = $seq, h.chunks = $chunks, h.token = $token REMOVE h.locked";

/// Tells what may be left with nothing.
pub(super) const TAKE: &str = "UNWIND $keys AS key MATCH (c:Chunk:%T {%OWN, key: key})
    WITH c, [(c)-[:MENTIONS {%OWN}]->(e:Entity:%T {%OWN}) | e.key] AS entities,
        [(c)-[:PART_OF {%OWN}]->(g:Group:%T {%OWN}) | g.key] AS groups,
        [(c)-[:NAMES {%OWN}]->(t:Title:%T {%OWN}) | t.key]
            + [(c)-[:PART_OF {%OWN}]->(:Group:%T {%OWN})-[:TITLED {%OWN}]->(t:Title:%T {%OWN}) | t.key] AS titles
    DETACH DELETE c RETURN entities, groups, titles";

pub(super) const PUT: &str =
    "UNWIND $rows AS row CREATE (:Chunk:%T {%OWN, key: row.key, mark: row.mark, own: row.own})";

pub(super) const PUT_MENTIONS: &str = "UNWIND $rows AS row MATCH (c:Chunk:%T {%OWN, key: row.chunk})
    MERGE (e:Entity:%T {%OWN, key: row.key})
    CREATE (c)-[:MENTIONS {%OWN, name: row.name, concept: row.concept}]->(e)";

pub(super) const PUT_GROUPS: &str = "UNWIND $rows AS row MATCH (c:Chunk:%T {%OWN, key: row.chunk})
    MERGE (t:Title:%T {%OWN, key: row.title})
    MERGE (g:Group:%T {%OWN, key: row.key})
    MERGE (g)-[:TITLED {%OWN}]->(t)
    CREATE (c)-[:PART_OF {%OWN}]->(g)";

pub(super) const PUT_NAMED: &str = "UNWIND $rows AS row MATCH (c:Chunk:%T {%OWN, key: row.chunk})
    MERGE (t:Title:%T {%OWN, key: row.title})
    CREATE (c)-[:NAMES {%OWN}]->(t)";

pub(super) const CLEAR_ENTITIES: &str = "UNWIND $keys AS key MATCH (n:Entity:%T {%OWN, key: key})
    WHERE NOT EXISTS { (n)<-[:MENTIONS {%OWN}]-(:Chunk:%T {%OWN}) } DETACH DELETE n";

pub(super) const CLEAR_GROUPS: &str = "UNWIND $keys AS key MATCH (n:Group:%T {%OWN, key: key})
    WHERE NOT EXISTS { (n)<-[:PART_OF {%OWN}]-(:Chunk:%T {%OWN}) } DETACH DELETE n";

pub(super) const CLEAR_TITLES: &str = "UNWIND $keys AS key MATCH (n:Title:%T {%OWN, key: key})
    WHERE NOT EXISTS { (n)<-[:TITLED {%OWN}]-(:Group:%T {%OWN}) }
        AND NOT EXISTS { (n)<-[:NAMES {%OWN}]-(:Chunk:%T {%OWN}) } DETACH DELETE n";

/// Distinct keys first: copies of one are in one page.
pub(super) const CONTENTS: &str = "MATCH (k:Chunk:%T {%OWN}) WHERE k.key > $after
    WITH DISTINCT k.key AS key ORDER BY key LIMIT $most
    MATCH (c:Chunk:%T {%OWN, key: key})
    RETURN c.tenant_id AS tenant, c.namespace_id AS namespace, c.key AS key, c.own AS own,
        coalesce(c.mark, 0) AS mark, COUNT { (c)-[{%OWN}]-(:%T {%OWN}) } AS relations,
        [(c)-[m:MENTIONS {%OWN}]->(e:Entity:%T {%OWN}) | [e.key, m.name, m.concept]] AS entities,
        [(c)-[:PART_OF {%OWN}]->(g:Group:%T {%OWN})-[:TITLED {%OWN}]->(t:Title:%T {%OWN})
            | [g.key, t.key]] AS groups,
        [(c)-[:NAMES {%OWN}]->(t:Title:%T {%OWN}) | t.key] AS named
    ORDER BY key";

/// Keys of one kind of node, with how often each is there.
macro_rules! keys {
    ($kind:literal) => {
        concat!(
            "MATCH (n:",
            $kind,
            ":%T {%OWN}) WHERE n.key >= $from
    WITH n.tenant_id AS tenant, n.namespace_id AS namespace, n.key AS key, count(*) AS copies
    RETURN tenant, namespace, key, copies ORDER BY key LIMIT $most"
        )
    };
}

pub(super) const ENTITY_KEYS: &str = keys!("Entity");
pub(super) const GROUP_KEYS: &str = keys!("Group");
pub(super) const TITLE_KEYS: &str = keys!("Title");

pub(super) const NODES: &str = "MATCH (n:%T {%OWN}) RETURN count(n) AS number";

/// Relations of `n` that lead out of its partition. It looks beyond it, as all that follow, and tells a number alone.
macro_rules! strays {
    () => {
        "COUNT { (n)-[r]-(m) WHERE NOT coalesce(m:%T AND m.tenant_id = $tenant
        AND m.namespace_id = $namespace AND r.tenant_id = $tenant AND r.namespace_id = $namespace, false) }"
    };
}

/// Those of a page of nodes of one kind, in the order of their constraint's index: in any other, each page would sort
/// all that is left.
macro_rules! strays_of {
    ($kind:literal, $from:literal) => {
        concat!(
            "MATCH (n:",
            $kind,
            ":%T {%OWN}) WHERE n.key ",
            $from,
            " WITH n ORDER BY n.tenant_id, n.namespace_id, n.key LIMIT $most
    WITH n.key AS key, ",
            strays!(),
            " AS strays RETURN max(key) AS last, sum(strays) AS strays"
        )
    };
}

pub(super) const STRAYS_OF_CHUNKS: &str = strays_of!("Chunk", "> $after");
pub(super) const STRAYS_OF_ENTITIES: &str = strays_of!("Entity", ">= $from");
pub(super) const STRAYS_OF_GROUPS: &str = strays_of!("Group", ">= $from");
pub(super) const STRAYS_OF_TITLES: &str = strays_of!("Title", ">= $from");

/// Those of nodes that no page has: of no kind, or without such a key. There should be none but the head.
pub(super) const STRAYS_OF_OTHERS: &str = concat!(
    "MATCH (n:%T {%OWN}) WITH n, labels(n) AS kinds WHERE NOT coalesce('Chunk' IN kinds AND n.key > ''
        OR any(kind IN kinds WHERE kind IN ['Entity', 'Group', 'Title']) AND n.key >= -9223372036854775808, false)
    RETURN sum(",
    strays!(),
    ") AS strays"
);

/// Nodes under the tenant's label that are not the tenant's.
macro_rules! lodgers {
    () => {
        "MATCH (n:%T) WHERE coalesce(n.tenant_id <> $tenant, true) OR n.namespace_id IS NULL"
    };
}

/// Nodes of the partition that lack the tenant's label, found by the constraints' indexes.
macro_rules! exiles {
    () => {
        "CALL () {
        MATCH (n:Head {%OWN}) WHERE n.key IS NOT NULL RETURN n
        UNION ALL MATCH (n:Chunk {%OWN}) WHERE n.key IS NOT NULL RETURN n
        UNION ALL MATCH (n:Entity {%OWN}) WHERE n.key IS NOT NULL RETURN n
        UNION ALL MATCH (n:Title {%OWN}) WHERE n.key IS NOT NULL RETURN n
        UNION ALL MATCH (n:Group {%OWN}) WHERE n.key IS NOT NULL RETURN n
    } WITH n WHERE NOT n:%T"
    };
}

pub(super) const LODGERS: &str = concat!(lodgers!(), " RETURN count(n) AS strays");

pub(super) const EXILES: &str = concat!(exiles!(), " RETURN count(n) AS strays");

/// One that bears the label of somebody else too loses this one, and stays what it is to them.
pub(super) const EVICT: &str = concat!(
    lodgers!(),
    " WITH n LIMIT $most
    WITH n, any(label IN labels(n) WHERE label STARTS WITH 'T_' AND label <> '%T') AS lives
    FOREACH (x IN CASE WHEN lives THEN [n] ELSE [] END | REMOVE x:%T)
    FOREACH (x IN CASE WHEN lives THEN [] ELSE [n] END | DETACH DELETE x)
    RETURN count(*) AS gone"
);

pub(super) const REPATRIATE: &str =
    concat!(exiles!(), " WITH n LIMIT $most DETACH DELETE n RETURN count(*) AS gone");

/// The token of a head that no change leads on from any more.
pub(super) const CLOSED: &str = "removed";

/// Made where there is none, so that there is always one to lock.
pub(super) const CLOSE: &str =
    "MERGE (h:Head:%T {%OWN, key: 'head'}) SET h.token = 'removed', h.seq = null, h.chunks = 0";

pub(super) const EMPTY: &str = "MATCH (n:%T {%OWN}) WHERE NOT n:Head WITH n LIMIT $most
    DETACH DELETE n RETURN count(*) AS gone";

pub(super) const END: &str = "MATCH (h:Head:%T {%OWN, key: 'head'}) DETACH DELETE h";

/// The one statement over all tenants.
pub(super) const TENANTS: &str = "MATCH (h:Head) RETURN DISTINCT h.tenant_id AS tenant";

const NAMESPACES: &str = "MATCH (h:Head:%T {tenant_id: $tenant})
    RETURN DISTINCT h.tenant_id AS tenant, h.namespace_id AS namespace";

/// A statement about one namespace of a tenant.
pub(super) fn about(template: &str, tenant: TenantId, namespace: NamespaceId) -> Statement {
    of(template, tenant).with("namespace", namespace.to_string())
}

/// Which namespaces a tenant has.
pub(super) fn namespaces(tenant: TenantId) -> Statement {
    of(NAMESPACES, tenant)
}

fn of(template: &str, tenant: TenantId) -> Statement {
    let text = template
        .replace("%T", &format!("T_{}", tenant.0.simple()))
        .replace("%OWN", "tenant_id: $tenant, namespace_id: $namespace");
    Statement::new(text).with("tenant", tenant.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They look at whatever a node leads to.
    const STRAYS: [&str; 5] =
        [STRAYS_OF_CHUNKS, STRAYS_OF_ENTITIES, STRAYS_OF_GROUPS, STRAYS_OF_TITLES, STRAYS_OF_OTHERS];

    const OVER_ONE_PARTITION: [&str; 28] = [
        HEAD,
        BEGIN,
        CHUNKS,
        TITLES,
        MEMBERS,
        NAMERS,
        RARE,
        MENTIONS,
        TOP,
        MARKS,
        LOCK,
        MOVE,
        TAKE,
        PUT,
        PUT_MENTIONS,
        PUT_GROUPS,
        PUT_NAMED,
        CLEAR_ENTITIES,
        CLEAR_GROUPS,
        CLEAR_TITLES,
        CLOSE,
        EMPTY,
        END,
        CONTENTS,
        ENTITY_KEYS,
        GROUP_KEYS,
        TITLE_KEYS,
        NODES,
    ];

    /// They leave the label or the properties of a node away, and so return numbers alone.
    const BEYOND: [&str; 4] = [LODGERS, EXILES, EVICT, REPATRIATE];

    #[test]
    fn every_relation_and_every_labelled_node_is_asked_for_its_tenant_and_namespace() {
        for text in OVER_ONE_PARTITION.into_iter().chain(STRAYS) {
            for relation in text.split("-[").skip(1).filter(|_| !STRAYS.contains(&text)) {
                let relation = relation.split(']').next().unwrap_or_default();
                assert!(relation.contains("{%OWN"), "{relation} in {text}");
            }
            for kind in [":Chunk", ":Entity", ":Title", ":Group", ":Head"] {
                for node in text.split(kind).skip(1) {
                    let open = node.starts_with(' ') || node.starts_with(" WITH");
                    assert!(open || node.starts_with(":%T {%OWN"), "{kind}{node} in {text}");
                }
            }
            assert!(!text.contains("id(") && !text.contains("elementId"), "{text}");
        }
    }

    #[test]
    fn of_what_leads_out_a_number_is_told_and_the_key_of_a_node_of_ones_own() {
        for text in STRAYS {
            let told = text.rsplit_once("RETURN ").map(|(_, told)| told).unwrap_or_default();
            let other = told.strip_prefix("sum(").and_then(|told| told.strip_suffix(") AS strays"));
            let is_number = other == Some(strays!());
            assert!(is_number || told == "max(key) AS last, sum(strays) AS strays", "{told} in {text}");
        }
    }

    #[test]
    fn what_looks_beyond_a_partition_tells_numbers_alone_and_still_names_its_tenant() {
        for text in BEYOND {
            let told = text.rsplit_once("RETURN ").map(|(_, told)| told).unwrap_or_default();
            assert!(told.starts_with("count(") && !told.contains(','), "{told} in {text}");
            assert!(text.contains("%T") && (text.contains("%OWN") || text.contains("$tenant")), "{text}");
        }
    }

    #[test]
    fn a_label_is_made_of_the_tenants_digits_alone() {
        let tenant = TenantId(uuid::Uuid::from_u128(0xabc));
        let label = format!("T_{}", tenant.0.simple());
        assert!(label[2..].chars().all(|c| c.is_ascii_hexdigit()) && label.len() == 34);
    }
}
