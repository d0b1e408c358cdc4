// Run once, by MongoDB's own image, on an empty data folder: the two accounts of docs/services.md and the indexes.
// The first inserts and cannot read, change or remove; the second only reads.
const fs = require("fs");
const secret = (name) => fs.readFileSync(`/run/secrets/${name}`, "utf8").trim();
const bulkhead = db.getSiblingDB("bulkhead");
const on = { db: "bulkhead", collection: "audit_event" };

bulkhead.createCollection("audit_event");
bulkhead.audit_event.createIndex({ tenant: 1, node: 1, number: 1 }, { unique: true });
bulkhead.audit_event.createIndex({ tenant: 1, at: -1, node: -1, number: -1 });
for (const [account, action] of [["writer", "insert"], ["reader", "find"]]) {
  const role = `bulkheadAudit${account[0].toUpperCase()}${account.slice(1)}`;
  bulkhead.createRole({ role, privileges: [{ resource: on, actions: [action] }], roles: [] });
  bulkhead.createUser({ user: `bulkhead-${account}`, pwd: secret(`mongodb-${account}-password`), roles: [role] });
}
