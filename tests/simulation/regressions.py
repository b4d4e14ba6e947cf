"""Schedules that once broke an invariant, by what was wrong; each was shrunk from a seed and is kept since it was mended."""

from __future__ import annotations

from tests.simulation.regressions_catalog import CATALOG

REGRESSIONS = {
    "a row is to be read again, and a column of its record's schema is gone at the source": """
        begin tables=t0:upsert partitions=3 memory=1000000000 rows=6 alone=0
        commit 1
        add_column t0 null
        write 1 insert t0 6 4
        commit 1
        deliver 10
        turn w0 289446 look
        write 0 update t0 5 2
        commit 0
        delete_topic t0
        make_topic t0
        turn w0 143046 look
        turn w0 304949
        operate w0 401868
        drop_column t0
        """,
    "the connector began anew, and later changes of each key came in the same batch as the rows that tell": """
        begin tables=t0:upsert partitions=3 memory=1000000000 rows=2 alone=1
        deliver 3
        turn w0 239447 look
        store
        turn w0 932896
        turn w0 405285 look
        commit 1
        forget_offsets
        """,
    "the first record of a topic is spoiled, and nobody knows its table yet": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=0 alone=1
        poison
        write 0 insert t0 1 1
        commit 0
        deliver 10
        turn w0 1 look
        turn w0 2 look
        turn w0 3 look
        """,
    "a goal that was set for a topic which was made again is never reached": """
        begin tables=t0:soft_delete partitions=2 memory=1000000000 rows=2 alone=0
        commit 1
        turn w0 773199 look
        deliver 3
        join 703818
        turn w0 721964
        turn w1 150689 look
        deliver 3
        store
        turn w1 287626 look
        delete_topic t0
        """,
    "a log of changes is read anew after retention passed one of its partitions, and the others go on where they were": """
        begin tables=t0:append partitions=3 memory=1000 rows=6 alone=0
        turn w0 996611
        turn w1 256337
        join 92053
        deliver 1
        retain t0 0 0
        """,
    "a row of a second snapshot came before the news of it, and swept what the first one had brought of another table": """
        begin tables=t0:soft_delete,t1:soft_delete partitions=3 memory=1000000000 rows=6 alone=0
        deliver 10
        turn w0 606669 look
        kill w0 529721
        join 936811
        join 319291
        commit 1
        turn w3 636171
        deliver 3
        turn w3 907094 look
        deliver 10
        store
        turn w3 662678 look
        share 554121
        turn w3 810273
        forget_offsets
        deliver 10
        turn w3 350488
        turn w3 595682
        """,
    "a snapshot begun twice found no row the second time": """
        begin tables=t0:soft_delete partitions=1 memory=1000 rows=2 alone=0
        deliver 3
        commit 1
        truncate t0
        restart_connector
        """,
    "somebody removes the checkpoint of a partition that gets no record any more": """
        begin tables=t0:soft_delete partitions=1 memory=1000 rows=2 alone=0
        add_partition t0 325787
        turn w0 562728 crash@4(warehouse.totals)
        join 865714
        add_partition t0 734297
        turn w2 256520 look
        forget_checkpoint t0
        """,
    "the connector begins anew, and with it goes what it had read for a resync": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=0 alone=1
        turn w0 921516
        act w0 744204 resync t0
        deliver 10
        write 1 insert t0 6 7
        commit 1
        restart_connector
        """,
    "an unsent value was taken from a row that a snapshot which began twice could not replace": """
        begin tables=t0:append,t1:soft_delete partitions=1 memory=1000 rows=6 alone=1
        write 1 update_body t1 0 1
        commit 1
        deliver 3
        deliver 10
        deliver 3
        restart_connector
        """,
    "a change of key took along what a snapshot that began anew had read later than the change": """
        begin tables=t0:upsert partitions=1 memory=1000 rows=6 alone=1
        write 1 update_body t0 0 1
        write 1 update_body t0 2 1
        commit 1
        restart_connector
        write 1 update t0 0 0
        commit 1
        write 1 move t0 0 6
        commit 1
        write 1 move t0 2 0
        commit 1
        deliver 10
        deliver 10
        """,
    "a worker stands still between asking for the log's ends and for its checkpoint, and others merge meanwhile": """
        begin tables=t0:soft_delete partitions=3 memory=1000000000 rows=0 alone=0
        turn w0 340463 crash@1(kafka.poll)
        turn w1 914219 look freeze@1(kafka.poll)
        deliver 3
        turn w2 953955 look freeze@5(warehouse.table_rows)
        write 1 insert t0 3 3
        write 1 move t0 3 5
        write 2 insert t0 6 0
        store
        commit 2
        commit 1
        write 1 update_body t0 6 5
        deliver 10
        commit 1
        deliver 3
        write 1 insert t0 4 4
        turn w3 150312
        turn w3 4192
        turn w3 315055 look
        wake w2 584997
        restart_connector
        operate w2 536339
        """,
    "several processes were stopped by their quarantine, and resuming one of them lets all go on": """
        begin tables=t0:append,t1:upsert partitions=3 memory=1000 rows=2 alone=0
        turn w0 616133
        turn w1 48037 look
        commit 1
        join 437504
        deliver 10
        join 843720
        delete_topic t0
        make_topic t0
        poison
        write 0 insert t0 2 5
        commit 0
        write 1 update t0 2 5
        commit 1
        store
        deliver 3
        restart_connector
        join 67683
        """,
    "a changed key takes what was not sent from a row that a resync left behind": """
        begin tables=t0:soft_delete,t1:append partitions=1 memory=1000000000 rows=6 alone=1
        turn w0 614051 freeze@1(kafka.poll)
        deliver 10
        turn w1 476438 look freeze@7(warehouse.table_rows)
        turn w2 514210 freeze@4(warehouse.load_state)
        turn w3 820237 look freeze@1(kafka.poll)
        turn w4 118 freeze@5(warehouse.totals)
        turn w5 517585 freeze@1(kafka.poll)
        turn w6 286998
        turn w6 796332 look freeze@25(warehouse.commit)
        write 1 update_body t0 2 4
        commit 1
        deliver 10
        write 2 delete t0 4 2
        turn w7 187184 look
        wake w4 267542
        turn w7 78441 look
        commit 2
        write 0 move t0 2 4
        deliver 3
        drop_target t1
        operate w7 186984
        wake w5 307629
        """,
    "the connector begins anew after a resync knew where its scan ended": """
        begin tables=t0:soft_delete,t1:upsert partitions=1 memory=1000000000 rows=6 alone=1
        deliver 10
        turn w0 407650 freeze@2(kafka.describe)
        act w1 472424 resync t1
        wake w0 354310
        deliver 10
        write 2 update t1 4 0
        turn w0 404983 look
        commit 2
        restart_connector
        """,
    "the last attempt at a snapshot found a table empty, and an earlier one had sent rows of it": """
        begin tables=t0:upsert partitions=2 memory=1000000000 rows=6 alone=1
        deliver 1
        commit 1
        truncate t0
        deliver 1
        restart_connector
        """,
    "a resync begins between a worker's look at the state and its taking the partitions": """
        begin tables=t0:soft_delete partitions=1 memory=1000000000 rows=6 alone=0
        turn w0 938926 freeze@3(kafka.describe)
        turn w1 315087 look crash@1(kafka.poll)
        wake w0 146400
        turn w2 407608 look crash@1(kafka.poll)
        turn w0 809000 look freeze@1(kafka.poll)
        turn w3 471653 freeze@1(kafka.poll)
        turn w4 986179 look crash@4(warehouse.states)
        turn w5 726415 crash@1(kafka.poll)
        commit 1
        add_column t0 ?
        turn w6 923424 freeze@1(kafka.poll)
        turn w7 248717 freeze@2(warehouse.checkpoints)
        deliver 10
        turn w8 312303 crash@5(warehouse.totals)
        write 0 update t0 5 1
        turn w9 240510 look freeze@2(warehouse.states)
        turn w10 431375 look freeze@7(warehouse.claim)
        turn w11 241605 look crash@1(kafka.poll)
        turn w12 760563 look crash@1(kafka.poll)
        turn w13 1691 look crash@1(kafka.poll)
        turn w14 704853 look freeze@1(kafka.poll)
        turn w15 830081 look crash@4(warehouse.load_state)
        commit 0
        deliver 1
        turn w16 579373
        deliver 10
        wake w10 977196
        """,
    "a resync that a new column needs is forgotten with the process that found so": """
        begin tables=t0:append,t1:upsert,t2:soft_delete partitions=1 memory=1000 rows=2 alone=0
        turn w0 513243 crash@1(kafka.poll)
        turn w1 234776 crash@1(kafka.poll)
        turn w2 333440 freeze@15(warehouse.checkpoints)
        turn w3 463350 look crash@1(kafka.poll)
        turn w4 715211 freeze@12(warehouse.schemas)
        turn w5 640240 freeze@2(warehouse.checkpoints)
        turn w6 371857 crash@4(warehouse.load_state)
        turn w7 364354 look crash@5(warehouse.totals)
        turn w8 741766 crash@2(warehouse.checkpoints)
        turn w9 16105 freeze@1(kafka.poll)
        turn w10 944820 look freeze@11(warehouse.tails)
        turn w11 445421 crash@1(kafka.poll)
        turn w12 778962 freeze@9(warehouse.reply)
        turn w13 500715 freeze@1(kafka.poll)
        turn w14 354462 look crash@3(kafka.describe)
        turn w15 246471 look freeze@6(warehouse.table_rows)
        turn w16 358761 look crash@11(warehouse.tails)
        turn w17 825213 look crash@1(kafka.poll)
        deliver 10
        turn w18 554149 freeze@3(line.flush)
        turn w19 755697 look crash@2(warehouse.checkpoints)
        turn w20 480291 crash@2(warehouse.checkpoints)
        forget_offsets
        turn w21 862163 look freeze@5(warehouse.totals)
        deliver 10
        turn w22 494046 crash@6(warehouse.table_rows)
        turn w23 363750 look freeze@1(kafka.poll)
        turn w24 774476 look crash@2(warehouse.checkpoints)
        write 0 insert t2 4 4
        turn w25 571929 crash@4(warehouse.load_state)
        turn w26 162086 crash@6(warehouse.table_rows)
        turn w27 728514 freeze@2(warehouse.checkpoints)
        turn w28 120292 look crash@1(kafka.poll)
        turn w29 976119 look crash@1(kafka.poll)
        add_partition t1 567225
        turn w30 952859 freeze@5(warehouse.totals)
        turn w31 881783 look freeze@1(kafka.poll)
        turn w32 136491 crash@2(warehouse.checkpoints)
        commit 0
        deliver 3
        turn w33 956306 look freeze@3(line.polled)
        turn w34 358853 look crash@1(kafka.poll)
        turn w35 492594
        drop_target t2
        turn w35 589595
        turn w35 639213
        wake w15 247861
        operate w15 668885
        deliver 10
        add_column t2 ?
        wake w18 83120
        write 2 delete t2 4 0
        commit 2
        deliver 3
        turn w35 639093 look
        turn w35 744138 look
        turn w35 610277 look freeze@4(warehouse.save_state)
        """,
    "the end of a snapshot of before a restore is taken for that of the one after it": """
        begin tables=t0:upsert,t1:upsert partitions=3 memory=1000 rows=2 alone=1
        commit 1
        turn w0 588269
        write 2 insert t0 4 6
        turn w0 795514 look freeze@1(kafka.poll)
        backup
        turn w1 206819 freeze@1(kafka.poll)
        restart_connector
        deliver 3
        commit 2
        act w2 442191 resync t0
        turn w2 92658 freeze@3(kafka.describe)
        turn w3 311088 freeze@7(warehouse.commit)
        add_column t0 ?
        lose_signal
        deliver 3
        turn w4 874437 freeze@1(kafka.poll)
        restore
        turn w6 901458 look
        deliver 3
        turn w6 37306 look
        turn w6 161687
        turn w6 858816
        turn w6 602131
        """,
    "an event of before a column came, sent again, falls into the generation that was read for it": """
        begin tables=t0:upsert,t1:upsert partitions=3 memory=1000 rows=2 alone=1
        turn w0 795514 look freeze@1(kafka.poll)
        turn w1 206819 freeze@1(kafka.poll)
        write 2 insert t1 6 3
        deliver 1
        deliver 3
        store
        commit 2
        turn w2 92658 freeze@3(kafka.describe)
        turn w3 311088 freeze@7(warehouse.commit)
        commit 1
        add_column t1 ?
        turn w4 874437 freeze@1(kafka.poll)
        write 1 insert t1 3 7
        deliver 10
        commit 1
        deliver 1
        turn w5 586964
        turn w5 23106
        restart_connector
        """,
    "a change of a log that comes again stays in the generation before the one that was read": """
        begin tables=t0:append partitions=3 memory=1000000000 rows=2 alone=1
        turn w0 956203
        join 67812
        deliver 10
        turn w0 988482
        join 853612
        join 650213
        store
        write 2 insert t0 6 2
        commit 2
        deliver 3
        delete_topic t0
        write 2 update_body t0 6 2
        make_topic t0
        commit 2
        deliver 10
        turn w3 174234
        operate w3 644408
        restart_connector
        """,
    "a connector that begins anew finds a complete table empty, and nothing tells": """
        begin tables=t0:soft_delete,t1:upsert partitions=2 memory=1000000000 rows=6 alone=1
        commit 1
        restart_connector
        deliver 10
        turn w0 708163 look
        store
        turn w0 49958 look
        turn w0 873838
        forget_offsets
        truncate t0
        restart_connector
        """,
    "who slept through a resync brings the checkpoints of the log before it back": """
        begin tables=t0:soft_delete partitions=3 memory=1000 rows=2 alone=0
        deliver 10
        commit 1
        turn w0 582020 freeze@2(line.polled)
        deliver 3
        turn w1 745026 look freeze@4(warehouse.totals)
        write 2 update_body t0 0 4
        turn w2 153749 look
        turn w2 214445 freeze@3(warehouse.release)
        turn w3 930581 look freeze@1(kafka.poll)
        turn w4 801649 freeze@5(warehouse.totals)
        commit 2
        deliver 10
        turn w5 311790 look freeze@2(kafka.describe)
        turn w6 992924 look freeze@3(warehouse.load_state)
        turn w7 609534 freeze@12(warehouse.parked_keys)
        turn w8 910108
        turn w8 9706
        turn w8 882381 look freeze@2(warehouse.states)
        turn w9 885415 freeze@2(warehouse.checkpoints)
        delete_topic t0
        wake w1 703737
        wake w3 511652
        make_topic t0
        turn w1 202599 freeze@1(kafka.poll)
        turn w10 681306 freeze@1(kafka.poll)
        turn w3 739228
        operate w3 770883
        """,
    "rows are read again for changes of before the source got a column, which later changes fill": """
        begin tables=t0:soft_delete partitions=1 memory=1000000000 rows=2 alone=0
        deliver 3
        forget_offsets
        turn w0 834593 look freeze@1(kafka.poll)
        turn w1 974607 look freeze@2(warehouse.states)
        turn w2 765529 look freeze@1(kafka.poll)
        deliver 10
        act w3 316901 resync t0
        turn w4 885269
        turn w4 435175 look
        store
        turn w4 875982 look
        wake w2 16533
        forget_offsets
        write 1 insert t0 3 7
        wake w1 475657
        commit 1
        deliver 3
        write 1 update t0 3 3
        deliver 3
        commit 1
        add_column t0 filled
        turn w1 104639 look
        write 2 delete t0 0 3
        commit 2
        write 0 move t0 3 0
        write 0 insert t0 3 3
        """,
    "a table was made with a new column, and rows that an incremental snapshot read before are on their way": """
        begin tables=t0:soft_delete,t1:upsert partitions=3 memory=1000000000 rows=0 alone=0
        write 0 insert t0 1 5
        turn w0 512854
        delete_topic t1
        write 0 insert t1 7 7
        commit 0
        deliver 3
        act w0 258663 resync t0
        deliver 3
        turn w0 537877 look
        add_column t0 ?
        """,
    "a table that is read anew was made with a new column, and rows of the snapshot were read before it": """
        begin tables=t0:upsert,t1:upsert partitions=3 memory=1000000000 rows=0 alone=1
        turn w0 893308 crash@23(warehouse.parked_keys)
        turn w1 144053 crash@2(warehouse.checkpoints)
        turn w2 567720 freeze@4(warehouse.load_state)
        deliver 3
        turn w3 956437 crash@2(warehouse.table_rows)
        turn w4 236993 look freeze@2(warehouse.states)
        wake w4 554197
        turn w4 626263 look
        store
        turn w4 474845 look
        write 1 insert t0 5 1
        commit 1
        add_column t0 ?
        """,
    "a table is empty when its new column comes, and a row of before it arrives by another partition": """
        begin tables=t0:soft_delete,t1:upsert partitions=3 memory=1000000000 rows=0 alone=0
        turn w0 423748 look
        deliver 1
        write 2 insert t1 1 0
        turn w0 633453 look
        store
        turn w0 266447 look
        commit 2
        add_column t1 ?
        """,
    "a key went to another partition, and what it holds by the first one is not read yet": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=6 alone=1
        turn w0 332743 freeze@1(kafka.poll)
        turn w1 785741 crash@3(kafka.describe)
        turn w2 18053 look freeze@1(kafka.poll)
        deliver 3
        write 1 move t0 5 1
        commit 1
        turn w3 950251 look
        deliver 10
        write 1 update t0 1 1
        add_partition t0 919305
        """,
    "the connector begins anew while a table is read anew, and what it never sends is between two of its changes": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=6 alone=0
        commit 1
        deliver 10
        forget_offsets
        deliver 3
        deliver 1
        deliver 1
        turn w0 864528
        kill w0 875141
        turn w1 608683 look
        turn w1 257367 look
        store
        lose_signal
        write 0 update t0 3 7
        turn w1 269942 look
        commit 0
        deliver 3
        write 1 update_body t0 3 5
        commit 1
        forget_offsets
        write 0 update t0 3 1
        """,
    "checkpoints are seen before a resync and the state after it": """
        begin tables=t0:soft_delete partitions=3 memory=1000 rows=6 alone=1
        deliver 3
        turn w0 640618
        deliver 10
        turn w0 265664 look freeze@21(merge.committed)
        turn w1 622916 freeze@4(warehouse.load_state)
        turn w2 185543 freeze@2(warehouse.checkpoints)
        turn w3 862494 look freeze@1(kafka.poll)
        turn w4 990336 look freeze@1(kafka.poll)
        turn w5 350323 look freeze@1(kafka.poll)
        turn w6 513592 look freeze@2(warehouse.checkpoints)
        turn w7 864002 freeze@8(warehouse.commit)
        turn w8 285877 freeze@1(kafka.poll)
        turn w9 595258 freeze@2(warehouse.checkpoints)
        turn w10 875296 look freeze@1(kafka.poll)
        turn w11 234801 freeze@4(warehouse.load_state)
        turn w12 545747
        turn w12 782722 freeze@15(line.advised)
        turn w13 712677 look freeze@8(warehouse.commit)
        delete_topic t0
        make_topic t0
        act w14 335116 resync t0
        """,
    "a clock that was set back takes a snapshot that found a table empty for a later one, again and again": """
        begin tables=t0:soft_delete,t1:upsert,t2:upsert partitions=2 memory=1000 rows=0 alone=0
        poison
        deliver 10
        write 1 insert t0 7 1
        restart_connector
        write 1 move t0 7 6
        commit 1
        deliver 3
        wall_clock -3600
        """,
    "the connector begins anew after the table was complete, and all rows that it reads then wait in the quarantine": """
        begin tables=t0:soft_delete,t1:soft_delete,t2:soft_delete partitions=2 memory=1000000000 rows=0 alone=1
        turn w0 236087 crash@1(kafka.poll)
        join 269704
        join 717803
        turn w1 56919 crash@1(kafka.poll)
        turn w3 905786 crash@5(warehouse.totals)
        turn w2 917599 look crash@3(kafka.describe)
        turn w4 225659 crash@2(warehouse.load_state)
        turn w5 104192 look
        write 0 insert t0 5 6
        write 2 insert t1 5 0
        commit 2
        deliver 10
        turn w5 999047 look
        write 0 insert t2 7 6
        store
        write 2 insert t1 1 7
        turn w5 68837
        commit 2
        turn w5 536497
        poison
        deliver 1
        write 0 delete t1 5 7
        commit 0
        turn w5 734457 look
        forget_offsets
        turn w5 489708
        deliver 10
        """,
    "a worker that was frozen before it added a column wakes after the table was made anew with it": """
        begin tables=t0:soft_delete partitions=1 memory=1000000000 rows=2 alone=1
        commit 1
        deliver 10
        turn w0 2
        turn w0 3
        add_column t0 null
        turn w0 2 look freeze@5(source.fill)
        write 0 insert t0 3 3
        commit 0
        drop_target t0
        turn w1 6 look
        operate w1 7
        deliver 10
        turn w1 10 look
        """,
    **CATALOG,
}
