    var c#i#j = Sums();
    // In as many sets as there are steps under way. Beyond the end the first vectors are brought again: a
    // branch would cost more.
#begin
    var x_at#p = column(#pu * X_VECTORS + x_k, k / 4u);
    var w_at#p = column(#pu * W_VECTORS + w_k, w_stride);
    var x#p_#x = x[x_from#x + x_at#p];
    var w#p_#w = weights[w_from#w + w_at#p];
    var f#p_#w = factor_at(key#w, w_at#p);
#end
    for (var step = 0u; step < k; step += STAGES * DEPTH) {
#begin
        if #pu > 0u && step + #pu * DEPTH >= k {
            break;
        }
        let first#p = step + #pu * DEPTH;
        let x_inside#p = WHOLE || first#p / 4u + x_k < k / 4u;
        let w_inside#p = WHOLE || first#p / RAW + w_k < w_stride;
        workgroupBarrier();
        x_tile[x_to + #xu * X_LINES * LINE] = select(vec4<f16>(), x#p_#x, x_inside#p);
        keep(w_to + #wu * W_LINES * LINE, w#p_#w, f#p_#w, w_inside#p);
        workgroupBarrier();
        let next#p = first#p + STAGES * DEPTH;
        x_at#p = column(next#p / 4u + x_k, k / 4u);
        w_at#p = column(next#p / RAW + w_k, w_stride);
        x#p_#x = x[x_from#x + x_at#p];
        w#p_#w = weights[w_from#w + w_at#p];
        f#p_#w = factor_at(key#w, w_at#p);
#multiply
#end
    }
