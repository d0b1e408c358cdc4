-- What operators decide is changed by `control` alone, in the transaction that records it in both audit logs. Two of these
-- changes were `app`'s, which cannot write into the deployment's: the end of a purge, and where a tenant's vectors are to be.
grant update (state, stage, lease, leased_until, updated_at, finished_at) on job to bulkhead_control;
grant select, insert, update on vector_placement to bulkhead_control;
