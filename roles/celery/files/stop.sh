#!/bin/sh
# Ends a worker without losing a task: stop PID WARM SOFT.
# TERM: nothing new is taken and what runs may finish, for WARM seconds. QUIT: after SOFT more seconds Celery puts the
# running tasks back into their queues. systemd kills what is left.
gone() { ! kill -0 "$1" 2>/dev/null; }
wait_for() {
    left=$(($2 * 5))
    while [ "$left" -gt 0 ]; do
        gone "$1" && exit 0
        sleep 0.2
        left=$((left - 1))
    done
}
[ -n "$1" ] || exit 0
kill -TERM "$1" 2>/dev/null || exit 0
wait_for "$1" "$2"
echo "tasks still run after $2 s: they go back to their queues in $3 s"
kill -QUIT "$1" 2>/dev/null || exit 0
wait_for "$1" $(($3 + 20))
echo "it did not end: killed; its tasks come back when the broker's visibility timeout has passed"
kill -KILL "$1"
