-- One store. {schema} is the quoted name of the schema, {latch} a random number: the latches of this store. {reserved} is a
-- setting of the session, {at_once} a number of tokens.
--
-- Every function that changes a key enters the key's latch first, at READ COMMITTED: each later statement sees
-- all that was committed before. Time is clock_timestamp(), never now(): that is the beginning of the transaction,
-- before the wait for the latch.

CREATE TABLE {schema}.store (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    version integer NOT NULL,
    high bigint NOT NULL,
    low bigint NOT NULL,
    -- After a crash of the server, no token up to this one is given again.
    reserved bigint NOT NULL DEFAULT 0
);

-- Unlogged: it has its row from the first acquisition after a crash of the server until the next crash.
CREATE UNLOGGED TABLE {schema}.uptime (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only)
);
INSERT INTO {schema}.uptime DEFAULT VALUES;

-- Tokens and versions. They begin with the time in microseconds: so those of a store that was dropped and made again
-- are greater than all before, and a late claim is refused. Below 2^53, so that JSON carries them exactly.
CREATE SEQUENCE {schema}.numbers AS bigint MAXVALUE 9007199254740991;
SELECT pg_catalog.setval('{schema}.numbers',
    (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::bigint);

-- The primary keys are SHA-256 of the key: a key may be longer than an entry of an index. bytea, because text
-- has no NUL. The result is text and not jsonb, which would not give the same text back.
CREATE TABLE {schema}.records (
    id bytea PRIMARY KEY,
    key bytea NOT NULL,
    version bigint NOT NULL,
    modified_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    expires_at timestamptz,
    result text NOT NULL
);

-- One row for an exclusive lock, or one for each of those that share it. slots: how many may share it at most, null: it is
-- exclusive.
CREATE TABLE {schema}.locks (
    id bytea NOT NULL,
    key bytea NOT NULL,
    holder bytea NOT NULL,
    bound boolean NOT NULL,
    owner bigint NOT NULL,
    token bigint NOT NULL,
    nonce bigint NOT NULL,
    acquired_at timestamptz NOT NULL,
    expires_at timestamptz,
    note bytea,
    slots bigint,
    PRIMARY KEY (id, token)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Unlogged: after a crash of the server all sessions are gone, and all waiters with them.
-- kind: 'l' waits for the lock, 'f' until no lock is in the way, 'c' for a change of the record. slots: null if a shared lock is
-- in the way, too.
CREATE UNLOGGED TABLE {schema}.waiters (
    id bytea NOT NULL,
    number bigint NOT NULL,
    nonce bigint NOT NULL,
    owner bigint NOT NULL,
    kind "char" NOT NULL,
    notified_at timestamptz,
    since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    slots bigint,
    PRIMARY KEY (id, number)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The functions. An upgrade makes them anew.
--
-- A call in an assignment is an expression. PERFORM, SELECT INTO and loops are queries, and each costs several times as
-- much. So the usual case is one query, which changes nothing if something is in the way.

-- A process lives as long as the session that has locked its number.
CREATE FUNCTION {schema}.lives(owner bigint) RETURNS boolean
LANGUAGE sql VOLATILE AS 'SELECT NOT pg_catalog.pg_try_advisory_xact_lock_shared($1)';

-- Enters the latch of a key, mostly without a wait. The limit is also that of the waits for rows, and of the commit.
-- p_patience: milliseconds. Null: the session has the limit already.
CREATE FUNCTION {schema}.enter(p_hash integer, p_patience integer) RETURNS boolean
LANGUAGE sql VOLATILE AS
'SELECT CASE
    WHEN p_patience IS NOT NULL AND pg_catalog.set_config(''lock_timeout'', p_patience::text, true) IS NULL THEN false
    WHEN pg_catalog.pg_try_advisory_xact_lock({latch}, p_hash) THEN true
    ELSE pg_catalog.pg_advisory_xact_lock({latch}, p_hash) IS NOT NULL END';

-- Enters the latch of this key, unless somebody is inside.
CREATE FUNCTION {schema}.try_enter(p_id bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_catalog.pg_try_advisory_xact_lock(
        {latch}, ('x' || pg_catalog.encode(pg_catalog.substr(p_id, 1, 4), 'hex'))::bit(32)::integer);
END $$;

CREATE FUNCTION {schema}.is_live(l {schema}.locks) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN l.token IS NOT NULL
        AND (l.expires_at IS NULL OR pg_catalog.clock_timestamp() < l.expires_at)
        AND (NOT l.bound OR {schema}.lives(l.owner));
END $$;

CREATE FUNCTION {schema}.is_of(l {schema}.locks, holder bytea, bound boolean, owner bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS 'SELECT $1.holder = $2 AND $1.bound = $3 AND (NOT $3 OR $1.owner = $4)';

-- Whether so many live locks leave room for one more, if those that share them have asked for so many slots at least, and the
-- new one for these. 0 slots: a lock is exclusive.
CREATE FUNCTION {schema}.has_room(held bigint, least_slots bigint, slots bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS 'SELECT $1 = 0 OR $3 IS NOT NULL AND $1 < least($2, $3)';

-- Microseconds since 1970, or until a time.
CREATE FUNCTION {schema}.since_epoch(t timestamptz) RETURNS bigint
LANGUAGE sql STABLE AS 'SELECT (pg_catalog.date_part(''epoch'', $1) * 1000000)::bigint';

CREATE FUNCTION {schema}.left_until(t timestamptz) RETURNS bigint
LANGUAGE sql VOLATILE AS
'SELECT pg_catalog.ceil(pg_catalog.date_part(''epoch'', $1 - pg_catalog.clock_timestamp()) * 1000000)::bigint';

CREATE FUNCTION {schema}.end_after(microseconds bigint) RETURNS timestamptz
LANGUAGE sql VOLATILE AS
'SELECT pg_catalog.clock_timestamp() + $1 * interval ''1 microsecond''';

CREATE FUNCTION {schema}.notify(owner bigint, nonce bigint) RETURNS boolean
LANGUAGE sql VOLATILE AS
'SELECT pg_catalog.pg_notify(''record_store_'' || $1::text, $2::text) IS NOT NULL';

-- A lock of the key, or a waiter ahead of others, is gone. Notifies all that wait until no lock is in their way, and of those
-- that want the lock the first that lives, if it can have it now.
CREATE FUNCTION {schema}.notify_free(p_id bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    w {schema}.waiters;
    held bigint;
    least_slots bigint;
    has_next boolean := false;
BEGIN
    FOR w IN SELECT * FROM {schema}.waiters t WHERE t.id = p_id AND t.kind <> 'c' ORDER BY t.number LOOP
        IF held IS NULL THEN
            SELECT pg_catalog.count(*), pg_catalog.min(coalesce(t.slots, 0)) INTO held, least_slots
                FROM {schema}.locks t WHERE t.id = p_id AND {schema}.is_live(t);
        END IF;
        IF w.kind = 'f' THEN
            IF held = 0 OR w.slots IS NOT NULL AND least_slots > 0 THEN
                DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.number = w.number;
                done := {schema}.notify(w.owner, w.nonce);
            END IF;
        ELSIF NOT has_next THEN
            IF {schema}.is_waiting(w) THEN
                has_next := true;
                IF {schema}.has_room(held, least_slots, w.slots) THEN
                    done := {schema}.notify_first(w);
                END IF;
            ELSE
                DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.number = w.number;
            END IF;
        END IF;
    END LOOP;
    RETURN true;
END $$;

-- The key has no lock any more. Notifies the first of those that wait, if it lives, wants the lock and was not notified before.
-- False: somebody else has to be notified.
CREATE FUNCTION {schema}.notify_next(p_id bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    UPDATE {schema}.waiters t SET notified_at = pg_catalog.clock_timestamp()
        WHERE t.id = p_id AND t.notified_at IS NULL AND {schema}.lives(t.owner) AND t.number = (
            SELECT pg_catalog.min(w.number) FROM {schema}.waiters w WHERE w.id = p_id AND w.kind = 'l')
            AND NOT EXISTS (SELECT FROM {schema}.waiters w WHERE w.id = p_id AND w.kind = 'f')
        RETURNING {schema}.notify(t.owner, t.nonce) INTO done;
    RETURN done IS TRUE;
END $$;

-- A process that is gone or stopped must not hold up the others.
CREATE FUNCTION {schema}.is_waiting(w {schema}.waiters) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (w.notified_at IS NULL OR pg_catalog.clock_timestamp() - interval '1 second' <= w.notified_at)
        AND {schema}.lives(w.owner);
END $$;

-- Notifies the first of those that want the lock.
CREATE FUNCTION {schema}.notify_first(w {schema}.waiters) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    IF w.notified_at IS NULL THEN
        UPDATE {schema}.waiters t SET notified_at = pg_catalog.clock_timestamp()
            WHERE t.id = w.id AND t.number = w.number;
        done := {schema}.notify(w.owner, w.nonce);
    END IF;
    RETURN true;
END $$;

-- The record of the key has changed.
CREATE FUNCTION {schema}.notify_change(p_id bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    w {schema}.waiters;
BEGIN
    FOR w IN SELECT * FROM {schema}.waiters t WHERE t.id = p_id AND t.kind = 'c' LOOP
        DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.number = w.number;
        done := {schema}.notify(w.owner, w.nonce);
    END LOOP;
    RETURN true;
END $$;

-- Adds a waiter, unless it is there already.
CREATE FUNCTION {schema}.enqueue(
    p_id bytea, p_nonce bigint, p_owner bigint, p_kind "char", p_slots bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.waiters (id, number, nonce, owner, kind, slots)
        SELECT p_id, 1 + coalesce(pg_catalog.max(t.number), 0), p_nonce, p_owner, p_kind, p_slots
        FROM {schema}.waiters t WHERE t.id = p_id
        HAVING pg_catalog.bool_or(t.nonce = p_nonce) IS NOT TRUE;
    RETURN true;
END $$;

-- The first acquisition of a session. A crash of the server ends all sessions, and with it the tokens may be lost that were
-- given just before. So the first session after a crash continues after those that were reserved. Returns the last of them.
--
-- This and the next function have the rights of their owner: the callers may not write these tables.
CREATE FUNCTION {schema}.begin_session() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    done bigint;
    is_first boolean := false;
    last_reserved bigint;
    last_number bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.uptime) THEN
        -- The others wait until the first one has committed.
        INSERT INTO {schema}.uptime DEFAULT VALUES ON CONFLICT DO NOTHING;
        is_first := FOUND;
    END IF;
    SELECT s.reserved, n.last_value INTO last_reserved, last_number FROM {schema}.store s, {schema}.numbers n;
    IF is_first THEN
        -- Others take numbers for versions meanwhile.
        done := pg_catalog.setval('{schema}.numbers', greatest(last_reserved, last_number) + {at_once});
    END IF;
    RETURN pg_catalog.set_config('{reserved}', last_reserved::pg_catalog.text, false)::pg_catalog.int8;
END $$;

-- Whether a token that was given is reserved on the disk. If not, more are reserved with the commit of this transaction.
CREATE FUNCTION {schema}.is_reserved(p_token bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    done pg_catalog.text;
    last_number bigint;
    last_reserved bigint;
BEGIN
    SELECT n.last_value INTO last_number FROM {schema}.numbers n;
    UPDATE {schema}.store s SET reserved = last_number + {at_once}
        WHERE s.reserved < p_token AND p_token <= last_number;
    IF FOUND THEN
        IF pg_catalog.current_setting('synchronous_commit') = 'off' THEN
            done := pg_catalog.set_config('synchronous_commit', 'on', true);
        END IF;
        RETURN false;
    END IF;
    -- It can be seen, so it is on the disk.
    SELECT s.reserved INTO last_reserved FROM {schema}.store s;
    done := pg_catalog.set_config('{reserved}', last_reserved::pg_catalog.text, false);
    RETURN last_reserved >= p_token;
END $$;

-- Adds a lock, returns its token, and ends the wait of the caller for it. p_is_first: only if the key has no lock, live or
-- not, and if the caller is the first who waits for one, or nobody is. Else the token is null.
CREATE FUNCTION {schema}.add_lock(
    p_id bytea, p_key bytea, p_holder bytea, p_bound boolean, p_owner bigint, p_nonce bigint, p_hold bigint, p_note bytea,
    p_slots bigint, p_is_first boolean, OUT token bigint)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    has_waiters boolean;
BEGIN
    INSERT INTO {schema}.locks AS t
        (id, key, holder, bound, owner, token, nonce, acquired_at, expires_at, note, slots)
        SELECT p_id, p_key, p_holder, p_bound, p_owner, pg_catalog.nextval('{schema}.numbers'), p_nonce,
            pg_catalog.clock_timestamp(), {schema}.end_after(p_hold), p_note, p_slots
        WHERE NOT p_is_first
            OR NOT EXISTS (SELECT FROM {schema}.locks o WHERE o.id = p_id)
            AND p_nonce = coalesce((SELECT w.nonce FROM {schema}.waiters w
                WHERE w.id = p_id AND w.kind = 'l' ORDER BY w.number LIMIT 1), p_nonce)
        RETURNING t.token, EXISTS (SELECT FROM {schema}.waiters w WHERE w.id = p_id AND w.kind <> 'c')
        INTO token, has_waiters;
    IF has_waiters THEN
        DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.nonce = p_nonce;
        IF p_slots IS NOT NULL THEN
            -- The next one may share it, and others may read.
            done := {schema}.notify_free(p_id);
        END IF;
    END IF;
END $$;

-- p_slots: how many may share the lock at most, this holder included. Null: it is exclusive.
CREATE FUNCTION {schema}.acquire_lock(
    p_id bytea, p_key bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_nonce bigint,
    p_hold bigint, p_waits boolean, p_patience integer, p_note bytea, p_slots bigint DEFAULT NULL,
    OUT status integer, OUT token bigint, OUT holder bytea, OUT bound boolean, OUT remaining bigint,
    OUT is_first boolean, OUT stale integer)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    l {schema}.locks;
    own {schema}.locks;
    w {schema}.waiters;
    held bigint := 0;
    least_slots bigint;
    stale_tokens bigint[];
    stale_holder bytea;
    stale_bound boolean;
    own_number bigint;
    last_reserved bigint := nullif(pg_catalog.current_setting('{reserved}', true), '')::bigint;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    IF last_reserved IS NULL THEN
        last_reserved := {schema}.begin_session();
    END IF;
    -- The session that stands for the process is gone, and nobody would keep or be notified of what it gets.
    IF NOT {schema}.lives(p_owner) THEN
        status := {GONE};
        RETURN;
    END IF;
    token := {schema}.add_lock(
        p_id, p_key, p_holder, p_bound, p_owner, p_nonce, p_hold, p_note, p_slots, true);
    IF token IS NOT NULL THEN
        status := {OK};
        is_first := true;
        IF p_bound AND p_slots IS NULL AND pg_catalog.current_setting('synchronous_standby_names') = ''
            AND (token <= last_reserved OR {schema}.is_reserved(token))
        THEN
            -- Nobody has to wait for the disk: a crash of the server ends the session of the owner, so the lock is over then,
            -- and its token is not given again. A synchronous standby is waited for: if it has become the primary meanwhile, the
            -- session of the owner is still there, and this lock must not be given.
            done := pg_catalog.set_config('synchronous_commit', 'off', true) IS NOT NULL;
        END IF;
        RETURN;
    END IF;
    -- Each lock is judged once: a lease that ends between two looks would count as both.
    FOR l IN SELECT * FROM {schema}.locks t WHERE t.id = p_id ORDER BY t.token LOOP
        IF NOT {schema}.is_live(l) THEN
            stale_tokens := stale_tokens || l.token;
            stale_holder := l.holder;
            stale_bound := l.bound;
            stale := CASE WHEN pg_catalog.clock_timestamp() >= l.expires_at THEN 1 ELSE 2 END;
        ELSIF {schema}.is_of(l, p_holder, p_bound, p_owner) THEN
            own := l;
        ELSE
            IF held = 0 THEN
                holder := l.holder;
                bound := l.bound;
            END IF;
            held := held + 1;
            least_slots := least(least_slots, coalesce(l.slots, 0));
            -- When the first of them ends, there is room for another one.
            remaining := least(remaining, {schema}.left_until(l.expires_at));
        END IF;
    END LOOP;
    IF own.token IS NOT NULL THEN
        stale := NULL;
        token := own.token;
        IF own.slots IS NOT NULL AND p_slots IS NULL THEN
            status := {SHARED};
        ELSE
            UPDATE {schema}.locks t SET expires_at = {schema}.end_after(p_hold)
                WHERE t.id = p_id AND t.token = own.token;
            done := {schema}.notify_sooner(p_id, own.expires_at, {schema}.end_after(p_hold));
            -- The answer to an earlier attempt of the same acquisition was lost.
            status := CASE WHEN own.nonce = p_nonce THEN {OK} ELSE {AGAIN} END;
        END IF;
        DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.nonce = p_nonce;
        IF FOUND THEN
            done := {schema}.notify_free(p_id);
        END IF;
        RETURN;
    END IF;
    status := CASE WHEN NOT {schema}.has_room(held, least_slots, p_slots) THEN {LOCKED} END;
    is_first := true;
    FOR w IN SELECT * FROM {schema}.waiters t WHERE t.id = p_id AND t.kind = 'l' ORDER BY t.number LOOP
        IF w.nonce = p_nonce THEN
            own_number := w.number;
            EXIT;
        ELSIF status IS NULL AND NOT {schema}.is_waiting(w) THEN
            DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.number = w.number;
            CONTINUE;
        ELSIF status IS NULL THEN
            -- Even if it cannot have the lock beside those that share it: if it is stopped, it does not look.
            done := {schema}.notify_first(w);
            status := {BEHIND};
        END IF;
        is_first := false;
        SELECT t.number INTO own_number FROM {schema}.waiters t WHERE t.id = p_id AND t.nonce = p_nonce;
        EXIT;
    END LOOP;
    IF status IS NOT NULL THEN
        stale := NULL;
        IF p_waits AND own_number IS NULL THEN
            done := {schema}.enqueue(p_id, p_nonce, p_owner, 'l', p_slots);
        ELSIF p_waits THEN
            -- It has looked, so it is not stopped.
            UPDATE {schema}.waiters t SET notified_at = NULL
                WHERE t.id = p_id AND t.number = own_number AND t.notified_at IS NOT NULL;
        ELSIF own_number IS NOT NULL THEN
            -- The last attempt of a wait. Those behind it may share what it could not have.
            DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.number = own_number;
            done := {schema}.notify_free(p_id);
        END IF;
        RETURN;
    END IF;
    IF stale_tokens IS NOT NULL THEN
        DELETE FROM {schema}.locks t WHERE t.id = p_id AND t.token = ANY (stale_tokens);
    END IF;
    holder := stale_holder;
    bound := stale_bound;
    token := {schema}.add_lock(
        p_id, p_key, p_holder, p_bound, p_owner, p_nonce, p_hold, p_note, p_slots, false);
    status := {OK};
END $$;

-- A lease ends earlier than its waiters know.
CREATE FUNCTION {schema}.notify_sooner(p_id bytea, p_old timestamptz, p_new timestamptz) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF p_new < p_old OR p_old IS NULL AND p_new IS NOT NULL THEN
        PERFORM {schema}.notify(t.owner, t.nonce) FROM {schema}.waiters t WHERE t.id = p_id AND t.kind <> 'c';
    END IF;
    RETURN true;
END $$;

-- Whether a token is that of a live lock. A token of a bound lock is worth something only in its process, unless the claim
-- says that it was passed on.
CREATE FUNCTION {schema}.has_token(
    l {schema}.locks, p_delegated boolean, p_owner bigint, p_token bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN l.token = p_token AND (p_delegated OR NOT l.bound OR l.owner = p_owner) AND {schema}.is_live(l);
END $$;

-- The claim of a holder (p_token is null) or of a token. With a token, p_bound says that it was passed on. token, expires_at and
-- slots are those of the lock, holder and bound those of another one that is in force.
CREATE FUNCTION {schema}.own(
    p_id bytea, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint,
    OUT status integer, OUT token bigint, OUT expires_at timestamptz, OUT slots bigint, OUT holder bytea,
    OUT bound boolean)
LANGUAGE plpgsql AS $$
DECLARE
    l {schema}.locks;
BEGIN
    status := CASE WHEN p_token IS NULL THEN {NOT_LOCKED} ELSE {LOST} END;
    FOR l IN SELECT * FROM {schema}.locks t
        WHERE t.id = p_id AND (p_token IS NULL OR t.token = p_token) ORDER BY t.token DESC
    LOOP
        IF (CASE WHEN p_token IS NULL THEN {schema}.is_of(l, p_holder, p_bound, p_owner) AND {schema}.is_live(l)
            ELSE {schema}.has_token(l, p_bound, p_owner, p_token) END)
        THEN
            status := {OK};
            token := l.token;
            expires_at := l.expires_at;
            slots := l.slots;
            RETURN;
        ELSIF p_token IS NULL AND {schema}.is_live(l) THEN
            status := {LOCKED};
            holder := l.holder;
            bound := l.bound;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION {schema}.release_lock(
    p_id bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint, p_patience integer,
    OUT status integer, OUT holder bytea, OUT bound boolean)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    own record;
    is_bound boolean;
    is_shared boolean;
    has_waiters boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    DELETE FROM {schema}.locks t
        WHERE t.id = p_id AND CASE WHEN p_token IS NULL
            THEN {schema}.is_of(t, p_holder, p_bound, p_owner) AND {schema}.is_live(t)
            ELSE {schema}.has_token(t, p_bound, p_owner, p_token) END
        RETURNING t.bound, t.slots IS NOT NULL,
            EXISTS (SELECT FROM {schema}.waiters w WHERE w.id = p_id AND w.kind <> 'c')
        INTO is_bound, is_shared, has_waiters;
    IF NOT FOUND THEN
        own := {schema}.own(p_id, p_holder, p_bound, p_owner, p_token);
        -- If the clock was set back in between, the lease is over nevertheless.
        status := CASE WHEN own.status <> {OK} THEN own.status WHEN p_token IS NULL THEN {NOT_LOCKED} ELSE {LOST} END;
        holder := own.holder;
        bound := own.bound;
        RETURN;
    END IF;
    status := {OK};
    IF is_bound AND NOT is_shared THEN
        -- Nobody has to wait for the disk: a lock that comes back in a crash is stale.
        done := pg_catalog.set_config('synchronous_commit', 'off', true) IS NOT NULL;
    END IF;
    IF is_shared THEN
        -- With it go those that shared the lock and are over.
        DELETE FROM {schema}.locks t WHERE t.id = p_id AND NOT {schema}.is_live(t);
    END IF;
    IF has_waiters AND (is_shared OR NOT {schema}.notify_next(p_id)) THEN
        done := {schema}.notify_free(p_id);
    END IF;
END $$;

CREATE FUNCTION {schema}.renew(
    p_id bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint, p_hold bigint,
    p_patience integer, OUT status integer, OUT holder bytea, OUT bound boolean)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    own record;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    own := {schema}.own(p_id, p_holder, p_bound, p_owner, p_token);
    status := own.status;
    holder := own.holder;
    bound := own.bound;
    IF status = {OK} THEN
        UPDATE {schema}.locks t SET expires_at = {schema}.end_after(p_hold) WHERE t.id = p_id AND t.token = own.token;
        done := {schema}.notify_sooner(p_id, own.expires_at, {schema}.end_after(p_hold));
    END IF;
END $$;

CREATE FUNCTION {schema}.break_lock(
    p_id bytea, p_hash integer, p_token bigint, p_patience integer, OUT was_there boolean)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    DELETE FROM {schema}.locks t WHERE t.id = p_id AND (p_token IS NULL OR t.token = p_token);
    was_there := FOUND;
    IF was_there THEN
        done := {schema}.notify_free(p_id);
    END IF;
END $$;

-- Whether a record may be changed on a claim, or whose lock is in the way. A holder needs no lock, but a shared one is too
-- little.
CREATE FUNCTION {schema}.admit(
    p_id bytea, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint,
    OUT status integer, OUT holder bytea, OUT bound boolean)
LANGUAGE plpgsql AS $$
DECLARE
    own record;
BEGIN
    own := {schema}.own(p_id, p_holder, p_bound, p_owner, p_token);
    status := CASE WHEN own.status = {NOT_LOCKED} THEN {OK} WHEN own.slots IS NOT NULL THEN {SHARED} ELSE own.status END;
    holder := own.holder;
    bound := own.bound;
END $$;

-- Writes the record if the key has no lock, live or not. False: it has one, and nothing was changed.
CREATE FUNCTION {schema}.write_unlocked(
    p_id bytea, p_key bytea, p_hash integer, p_result text, p_time_to_live bigint, p_patience integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    has_waiters boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    INSERT INTO {schema}.records AS t (id, key, version, modified_at, expires_at, result)
        SELECT p_id, p_key, pg_catalog.nextval('{schema}.numbers'), pg_catalog.clock_timestamp(),
            {schema}.end_after(p_time_to_live), p_result
        WHERE NOT EXISTS (SELECT FROM {schema}.locks l WHERE l.id = p_id)
        ON CONFLICT (id) DO UPDATE SET version = excluded.version, modified_at = excluded.modified_at,
            expires_at = excluded.expires_at, result = excluded.result
        RETURNING EXISTS (SELECT FROM {schema}.waiters w WHERE w.id = p_id AND w.kind = 'c') INTO has_waiters;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF has_waiters THEN
        done := {schema}.notify_change(p_id);
    END IF;
    RETURN true;
END $$;

-- p_mode: 0 writes, 1 writes if the version is p_version (null: no record), 2 only compares the versions.
CREATE FUNCTION {schema}.write(
    p_id bytea, p_key bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint,
    p_result text, p_time_to_live bigint, p_mode integer, p_version bigint, p_patience integer,
    OUT status integer, OUT holder bytea, OUT bound boolean)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    admitted record;
    present bigint;
    has_waiters boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    admitted := {schema}.admit(p_id, p_holder, p_bound, p_owner, p_token);
    status := admitted.status;
    holder := admitted.holder;
    bound := admitted.bound;
    IF status <> {OK} THEN
        RETURN;
    END IF;
    IF p_mode <> 0 THEN
        SELECT t.version INTO present FROM {schema}.records t
            WHERE t.id = p_id AND (t.expires_at IS NULL OR pg_catalog.clock_timestamp() < t.expires_at);
        IF present IS DISTINCT FROM p_version THEN
            status := {OTHER};
            RETURN;
        ELSIF p_mode = 2 THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO {schema}.records AS t (id, key, version, modified_at, expires_at, result)
        VALUES (p_id, p_key, pg_catalog.nextval('{schema}.numbers'), pg_catalog.clock_timestamp(),
            {schema}.end_after(p_time_to_live), p_result)
        ON CONFLICT (id) DO UPDATE SET version = excluded.version, modified_at = excluded.modified_at,
            expires_at = excluded.expires_at, result = excluded.result
        RETURNING EXISTS (SELECT FROM {schema}.waiters w WHERE w.id = p_id AND w.kind = 'c') INTO has_waiters;
    IF has_waiters THEN
        done := {schema}.notify_change(p_id);
    END IF;
END $$;

CREATE FUNCTION {schema}.remove(
    p_id bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint, p_patience integer,
    OUT status integer, OUT holder bytea, OUT bound boolean, OUT existed boolean)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    admitted record;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    admitted := {schema}.admit(p_id, p_holder, p_bound, p_owner, p_token);
    status := admitted.status;
    holder := admitted.holder;
    bound := admitted.bound;
    IF status = {OK} THEN
        DELETE FROM {schema}.records t WHERE t.id = p_id
            RETURNING t.expires_at IS NULL OR pg_catalog.clock_timestamp() < t.expires_at INTO existed;
        IF existed THEN
            done := {schema}.notify_change(p_id);
        END IF;
        existed := existed IS TRUE;
    END IF;
END $$;

-- Removes the record if it still has this version and is not locked, as far as can be seen now: the caller is in the latch,
-- except in a dry run, which removes nothing.
CREATE FUNCTION {schema}.evict_unlocked(p_id bytea, p_version bigint, p_is_dry_run boolean) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    present bigint;
BEGIN
    SELECT t.version INTO present FROM {schema}.records t
        WHERE t.id = p_id AND (t.expires_at IS NULL OR pg_catalog.clock_timestamp() < t.expires_at);
    IF present IS NULL THEN
        RETURN {ABSENT};
    ELSIF present <> p_version THEN
        RETURN {OTHER};
    END IF;
    IF EXISTS (SELECT FROM {schema}.locks t WHERE t.id = p_id AND {schema}.is_live(t)) THEN
        RETURN {LOCKED};
    ELSIF NOT p_is_dry_run THEN
        DELETE FROM {schema}.records t WHERE t.id = p_id;
        done := {schema}.notify_change(p_id);
    END IF;
    RETURN {OK};
END $$;

-- Evicts one record.
CREATE FUNCTION {schema}.evict(
    p_id bytea, p_hash integer, p_version bigint, p_patience integer, OUT status integer)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    status := {schema}.evict_unlocked(p_id, p_version, false);
END $$;

-- Evicts several records. It keeps all latches until it ends, so it waits for none: where somebody is inside, the status is
-- {BUSY}, and the record has to be evicted alone.
CREATE FUNCTION {schema}.evict_several(
    p_ids bytea[], p_versions bigint[], p_is_dry_run boolean, OUT status integer) RETURNS SETOF integer
LANGUAGE plpgsql AS $$
BEGIN
    FOR number IN 1 .. pg_catalog.cardinality(p_ids) LOOP
        IF p_is_dry_run OR {schema}.try_enter(p_ids[number]) THEN
            status := {schema}.evict_unlocked(p_ids[number], p_versions[number], p_is_dry_run);
        ELSE
            status := {BUSY};
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- The record and the lock have to be seen at one moment, and whether a lock lives can only be asked afterwards.
-- A lock that was found dead stays dead. So if the same one is there at a second look, nobody held the key then. A shared lock
-- is in no reader's way.
CREATE FUNCTION {schema}.read(
    p_id bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_token bigint, p_ignores_lock boolean,
    p_patience integer,
    OUT status integer, OUT version bigint, OUT result text, OUT time_left bigint, OUT holder bytea, OUT bound boolean)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    l {schema}.locks;
    expires_at timestamptz;
    dead bigint;
BEGIN
    LOOP
        SELECT r.version, r.result, r.expires_at,
                locks.id, locks.key, locks.holder, locks.bound, locks.owner, locks.token, locks.expires_at
            INTO version, result, expires_at, l.id, l.key, l.holder, l.bound, l.owner, l.token, l.expires_at
            FROM (SELECT p_id AS id) k
            LEFT JOIN {schema}.records r ON r.id = k.id
            LEFT JOIN {schema}.locks locks ON locks.id = k.id
                AND CASE WHEN p_token IS NULL THEN locks.slots IS NULL ELSE locks.token = p_token END;
        IF p_ignores_lock THEN
            status := {OK};
        ELSIF p_token IS NOT NULL THEN
            status := CASE WHEN {schema}.has_token(l, p_bound, p_owner, p_token) THEN {OK} ELSE {LOST} END;
        ELSIF l.token IS NULL OR l.token = dead THEN
            status := {OK};
        ELSIF {schema}.is_live(l) THEN
            status := CASE WHEN {schema}.is_of(l, p_holder, p_bound, p_owner) THEN {OK} ELSE {LOCKED} END;
        ELSE
            -- The lock is stale. A change that was admitted before its end may not be committed yet. In the latch it is
            -- committed or refused.
            done := {schema}.enter(p_hash, p_patience);
            dead := l.token;
            CONTINUE;
        END IF;
        EXIT;
    END LOOP;
    holder := l.holder;
    bound := l.bound;
    IF status <> {OK} OR pg_catalog.clock_timestamp() >= expires_at THEN
        version := NULL;
        result := NULL;
    END IF;
    time_left := {schema}.left_until(expires_at);
END $$;

-- Waits until no lock is in the way: the caller is notified if the status is {LOCKED}. In the way of a holder that wants to
-- read is an exclusive lock of another one, and if p_holder is null every lock.
CREATE FUNCTION {schema}.wait_for_lock(
    p_id bytea, p_hash integer, p_holder bytea, p_bound boolean, p_owner bigint, p_nonce bigint, p_patience integer,
    OUT status integer, OUT holder bytea, OUT bound boolean, OUT remaining bigint)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    l {schema}.locks;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    IF NOT {schema}.lives(p_owner) THEN
        status := {GONE};
        RETURN;
    END IF;
    status := {OK};
    FOR l IN SELECT * FROM {schema}.locks t
        WHERE t.id = p_id AND (p_holder IS NULL OR t.slots IS NULL) ORDER BY t.token DESC
    LOOP
        IF {schema}.is_live(l) AND {schema}.is_of(l, p_holder, p_bound, p_owner) IS NOT TRUE THEN
            status := {LOCKED};
            holder := l.holder;
            bound := l.bound;
            remaining := least(remaining, {schema}.left_until(l.expires_at));
        END IF;
    END LOOP;
    IF status = {LOCKED} THEN
        done := {schema}.enqueue(p_id, p_nonce, p_owner, 'f', CASE WHEN p_holder IS NOT NULL THEN 1 END);
    END IF;
END $$;

-- Waits until the record has another version than p_version. The caller is notified if the status is {SAME}.
CREATE FUNCTION {schema}.wait_for_change(
    p_id bytea, p_hash integer, p_owner bigint, p_nonce bigint, p_version bigint, p_patience integer,
    OUT status integer, OUT version bigint, OUT remaining bigint)
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    IF NOT {schema}.lives(p_owner) THEN
        status := {GONE};
        RETURN;
    END IF;
    SELECT t.version, {schema}.left_until(t.expires_at) INTO version, remaining FROM {schema}.records t
        WHERE t.id = p_id AND (t.expires_at IS NULL OR pg_catalog.clock_timestamp() < t.expires_at);
    IF version IS DISTINCT FROM p_version THEN
        status := {OTHER};
    ELSE
        status := {SAME};
        done := {schema}.enqueue(p_id, p_nonce, p_owner, 'c', NULL);
    END IF;
END $$;

-- Gives up a wait.
CREATE FUNCTION {schema}.leave(p_id bytea, p_hash integer, p_nonce bigint, p_patience integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    done := {schema}.enter(p_hash, p_patience);
    DELETE FROM {schema}.waiters t WHERE t.id = p_id AND t.nonce = p_nonce;
    IF FOUND THEN
        -- The next one may have its turn.
        done := {schema}.notify_free(p_id);
    END IF;
END $$;
