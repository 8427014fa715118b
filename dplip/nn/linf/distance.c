/* Distances of rows to points, eight rows in a vector: see distance.py, which has the same in torch.
   Rows stand in columns: entry i of row r is at [i * n + r], and n is a multiple of LANES. */

double pow(double, double);
typedef float v8 __attribute__((vector_size(32)));
typedef int i8 __attribute__((vector_size(32)));
enum { V = 4, LANES = 8 * V, MOST = 32 };

static inline v8 load(const float *p) { v8 v; __builtin_memcpy(&v, p, 32); return v; }
static inline void store(void *p, v8 v) { __builtin_memcpy(p, &v, 32); }
static inline v8 pick(i8 mask, v8 a, v8 b) { return (v8)((mask & (i8)a) | (~mask & (i8)b)); }
static inline int any(i8 mask) {
    long long part[4];
    __builtin_memcpy(part, &mask, 32);
    return (part[0] | part[1] | part[2] | part[3]) != 0;
}
static inline v8 absolute(v8 a) { return (v8)((i8)a & 0x7fffffff); }

/* values[j * n + r] = max_i keep |x_i - w_ji|; code = sign * (i + 1) of the first winner, 0 where the maximum is 0. */
void winners(const float *x, const float *keep, const float *w, float *values, int *code,
             long first, long last, long n, long m, long d) {
    for (long r = first; r < last; r += LANES)
        for (long j = 0; j < m; j++) {
            const float *wj = w + j * d;
            v8 best[V];
            i8 at[V];
            for (int k = 0; k < V; k++) { best[k] = (v8){0}; at[k] = (i8){0}; }
            for (long i = 0; i < d; i++) {
                const float *xi = x + i * n + r, *ki = keep ? keep + i * n + r : 0;
                const i8 here = (i8){0} + (int)(i + 1);
                for (int k = 0; k < V; k++) {
                    v8 z = absolute(load(xi + 8 * k) - wj[i]);
                    if (ki) z = z * load(ki + 8 * k);
                    i8 more = z > best[k];
                    best[k] = pick(more, z, best[k]);
                    at[k] = (more & here) | (~more & at[k]);
                }
            }
            for (int k = 0; k < V; k++) {
                store(values + j * n + r + 8 * k, best[k]);
                for (int l = 0; l < 8; l++) {
                    int i = at[k][l];
                    code[j * n + r + 8 * k + l] = i && x[(i - 1) * n + r + 8 * k + l] < wj[i - 1] ? -i : i;
                }
            }
        }
}

/* values[j * n + r] = sum_k omega_k z_(k) of the differences z_i = max(a_i - w_ji, w_ji - b_i, 0), largest first. */
void ranked(const float *a, const float *b, const float *w, const float *omega, float *values,
            long first, long last, long n, long m, long d, long top) {
    for (long r = first; r < last; r += LANES)
        for (long j = 0; j < m; j++) {
            const float *wj = w + j * d;
            v8 best[MOST][V];
            for (int t = 0; t < top; t++)
                for (int k = 0; k < V; k++) best[t][k] = (v8){0};
            for (long i = 0; i < d; i++)
                for (int k = 0; k < V; k++) {
                    v8 up = load(a + i * n + r + 8 * k) - wj[i], down = wj[i] - load(b + i * n + r + 8 * k);
                    v8 z = pick(up > down, up, down);
                    i8 more = z > best[top - 1][k];
                    if (!any(more)) continue;
                    for (int t = 0; t < top; t++) {
                        i8 wins = z > best[t][k];
                        v8 held = best[t][k];
                        best[t][k] = pick(wins, z, held);
                        z = pick(wins, held, z);
                    }
                }
            for (int k = 0; k < V; k++) {
                v8 sum = (v8){0};
                for (int t = 0; t < top; t++) sum += omega[t] * best[t][k];
                store(values + j * n + r + 8 * k, sum);
            }
        }
}

/* Terms a^p below 2^-30 / d of the largest, which is 1, are left out: together they are below its rounding. At large p
   they are nearly all terms. */
static float faint(double p, long d) { return (float)pow(0x1p-30 / (double)d, 1 / p); }

/* The power mean of exponent 2^k: a = |x - w| / top, sum = sum a^p, values = top (sum / d)^(1/p). */
void means(const float *x, const float *keep, const float *w, float *values, float *top, float *sum,
           long first, long last, long n, long m, long d, long k) {
    const double p = (double)(1L << k);
    const float least = faint(p, d);
    const int skip = k > 4; /* below it the terms are too alike for the test to pay */
    for (long r = first; r < last; r += LANES)
        for (long j = 0; j < m; j++) {
            const float *wj = w + j * d;
            v8 high[V], inverse[V], total[V];
            for (int v = 0; v < V; v++) { high[v] = (v8){0}; total[v] = (v8){0}; }
            for (long i = 0; i < d; i++) {
                const float *xi = x + i * n + r, *ki = keep ? keep + i * n + r : 0;
                for (int v = 0; v < V; v++) {
                    v8 z = absolute(load(xi + 8 * v) - wj[i]);
                    if (ki) z = z * load(ki + 8 * v);
                    high[v] = pick(z > high[v], z, high[v]);
                }
            }
            for (int v = 0; v < V; v++) {
                v8 none = (v8){0};
                high[v] = pick(high[v] > none + 1e-30f, high[v], none + 1.0f); /* below it: no inverse, and no gradient */
                inverse[v] = 1.0f / high[v];
            }
            for (long i = 0; i < d; i++) {
                const float *xi = x + i * n + r, *ki = keep ? keep + i * n + r : 0;
                for (int v = 0; v < V; v++) {
                    v8 a = absolute(load(xi + 8 * v) - wj[i]) * inverse[v];
                    if (ki) a = a * load(ki + 8 * v);
                    if (skip && !any(a > (v8){0} + least)) continue;
                    for (long t = 0; t < k; t++) a = a * a;
                    total[v] += a;
                }
            }
            for (int v = 0; v < V; v++) {
                store(top + j * n + r + 8 * v, high[v]);
                store(sum + j * n + r + 8 * v, total[v]);
                for (int l = 0; l < 8; l++)
                    values[j * n + r + 8 * v + l] = high[v][l] * (float)pow(total[v][l] / (double)d, 1 / p);
            }
        }
}

/* in_x[i * n + r] += sum_j g u_i and in_w[j * d + i] -= sum_r g u_i with u_i = sign(z_i) a_i^(p-1) (sum/d)^((1-p)/p) / d. */
void means_backward(const float *x, const float *keep, const float *w, const float *g, const float *top,
                    const float *sum, float *in_x, float *in_w,
                    long first, long last, long n, long m, long d, long k) {
    const double p = (double)(1L << k);
    const float least = faint(p, d);
    const int skip = k > 4; /* below it the terms are too alike for the test to pay */
    for (long r = first; r < last; r += LANES)
        for (long j = 0; j < m; j++) {
            const float *wj = w + j * d;
            v8 inverse[V], scale[V];
            int live = 0;
            for (int v = 0; v < V; v++) {
                inverse[v] = 1.0f / load(top + j * n + r + 8 * v);
                for (int l = 0; l < 8; l++) {
                    long at = j * n + r + 8 * v + l;
                    live |= g[at] != 0.0f;
                    scale[v][l] = sum[at] > 0 ? (float)(g[at] * pow(sum[at] / (double)d, (1 - p) / p) / d) : 0.0f;
                }
            }
            if (!live) continue;
            for (long i = 0; i < d; i++) {
                const float *xi = x + i * n + r, *ki = keep ? keep + i * n + r : 0;
                v8 side = (v8){0};
                int seen = 0;
                for (int v = 0; v < V; v++) {
                    v8 z = load(xi + 8 * v) - wj[i];
                    v8 a = absolute(z) * inverse[v];
                    if (ki) a = a * load(ki + 8 * v);
                    if (skip && !any(a > (v8){0} + least)) continue;
                    seen = 1;
                    v8 low = a;
                    for (long t = 1; t < k; t++) { a = a * a; low = low * a; }
                    v8 u = (v8)((i8)low | ((i8)z & (int)0x80000000)) * scale[v];
                    side += u;
                    store(in_x + i * n + r + 8 * v, load(in_x + i * n + r + 8 * v) + u);
                }
                if (!seen) continue;
                float whole = 0;
                for (int l = 0; l < 8; l++) whole += side[l];
                in_w[j * d + i] -= whole;
            }
        }
}
